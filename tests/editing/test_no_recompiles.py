"""Edits are tensors: whatever is edited, the graphs that were compiled first serve it."""

import random
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel

from pivotal.driver import drive
from pivotal.editing.edit import DEFAULT, Edit
from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.errors import BackendError, EditWithoutEffectError
from pivotal.inversion import null_text
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.compiled_denoiser import CompiledDenoiser, warm_up
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.ddim import sample
from pivotal.schedule import NoiseLevels, ScheduleConfig

WIDTH, SIDE = 24, 8  # the tests' text encoder's width; latents
NOUNS = ("cat", "dog", "owl", "big red fox", "bear cub")
PLACES = ("on a mat", "in the sun", "by a river", "at night")


@pytest.fixture(scope="module")
def smallest():
    """A UNet of one resolution: two transformer blocks. float32."""
    torch.manual_seed(3)
    model = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    with torch.no_grad():
        model.conv_out.weight.mul_(0.3)
    return RoutedUNet(model.eval(), word_map_downscale=1)


@pytest.fixture(scope="module")
def layers(smallest):
    return Layers(
        tuple(layer.downscale for layer in smallest.self_layers),
        tuple(layer.downscale for layer in smallest.cross_layers),
        injected_from=1,
    )


def a_prompt(draw):
    return f"a {draw.choice(NOUNS)} {draw.choice(PLACES)}"


def an_edit(draw, source):
    """Any kind of edit of a source prompt, its options drawn too."""
    target = draw.choice([a_prompt(draw), source, f"{source}, blue"])
    word = draw.choice(target.replace(",", "").split())
    blend = draw.choice([(), (), (word,)])
    share = draw.choice([0.0, 0.3, 0.5, 1.0, (0.2, 0.8)])
    return Edit(
        target,
        cross_replace_steps={DEFAULT: share, word: 1.0} if draw.random() < 0.3 else share,
        self_replace_steps=draw.choice([0.0, 0.5, 1.0, (0.4, 0.9)]),
        weights={word: draw.uniform(-2, 4)} if draw.random() < 0.4 else {},
        blend=blend,
        subtract=draw.choice([(), ("a",)]) if blend else (),
        blend_start=draw.choice([0.0, 0.5]) if blend else Edit.blend_start,
        mask=draw.choice([None, torch.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 5 > 1]),
        mutual=draw.choice([None, None, MutualSelfAttention(start_step=0, start_layer=1)]),
    )


def run_random_edits(compiled, layers, tokenize, embed, count):
    """Random edits and fits, every twentieth compared with the eager network. Returns the edits."""
    denoiser, eager = compiled
    draw, made, compared = random.Random(7), [], 0
    null = Conditioning(embed(tokenize("")).float()[None])
    while len(made) < count:
        source = a_prompt(draw)
        edits = [an_edit(draw, source) for _ in range(draw.randint(1, 4))]
        tokens = [tokenize(source), *(tokenize(edit.target) for edit in edits)]
        steps, guidance = draw.randint(1, 2), draw.choice([1.0, 3.0, 7.5])
        run = partial(edited, tokens, edits, embed, layers, null, steps, guidance, len(made))
        try:
            found = run(denoiser)
        except EditWithoutEffectError:
            continue
        made += edits
        if len(made) // 20 > compared:
            compared += 1
            torch.testing.assert_close(found, run(eager), rtol=1e-3, atol=1e-4)
            options = null_text.NullTextOptions(inner_steps=1)
            fit = null_text.invert(a_schedule(steps), found[:1], null, null, options)
            drive(fit, denoiser)
    assert compared > count // 30
    return made


def a_schedule(steps):
    config = ScheduleConfig(beta_end=0.003, steps_offset=1, set_alpha_to_one=False)
    return NoiseLevels(config).schedule(steps)


def edited(tokens, edits, embed, layers, null, steps, guidance, seed, denoiser):
    rows = len(tokens)
    control = PromptToPrompt(tokens[0], tokens[1:], edits, steps, layers)
    conditioning = Conditioning(torch.stack([embed(each) for each in tokens]).float())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 4, SIDE, SIDE, generator=generator).expand(rows, -1, -1, -1)
    nulls = null.select(torch.zeros(rows, dtype=torch.int64))
    asked = sample(a_schedule(steps), noise, conditioning, lambda _: nulls, guidance, control)
    return drive(asked, denoiser)


def made_warm(smallest, tokenize, embed, **options):
    """(a denoiser warm for batches of 8 rows, the eager one)"""
    eager = TorchDenoiser(smallest, "epsilon")
    denoiser = CompiledDenoiser(eager, CompileOptions(Buckets((8,)), **options))
    warm(denoiser, smallest, Conditioning(embed(tokenize("a cat")).float()[None]), SIDE)
    return denoiser, eager


def warm(denoiser, smallest, conditioning, width):
    latents = torch.randn(1, 4, SIDE, width, generator=torch.Generator().manual_seed(0))
    warm_up(denoiser, smallest.layers, conditioning, latents, (8,), gradients=True)


@pytest.fixture(scope="module")
def compiled(smallest, tokenize, embed):
    """Traced by Dynamo as for any backend, and run by torch's own."""
    return made_warm(smallest, tokenize, embed, backend="eager")


def test_no_random_edit_compiles_anything_after_warm_up(compiled, layers, tokenize, embed):
    graphs = dict(compiled[0].network.graphs.seconds)
    assert len(graphs) == 3  # without routes, with routes, with a gradient
    with torch.compiler.set_stance("fail_on_recompile"):
        made = run_random_edits(compiled, layers, tokenize, embed, 80)
    assert compiled[0].network.graphs.seconds == graphs
    assert len({edit.target for edit in made}) > 10
    assert {bool(edit.weights) for edit in made} == {bool(edit.blend) for edit in made} == {0, 1}


def test_what_would_compile_after_warm_up_is_an_error_there(compiled, smallest, tokenize, embed):
    conditioning = Conditioning(embed(tokenize("a cat")).float()[None])
    with torch.compiler.set_stance("fail_on_recompile"):
        warm(compiled[0], smallest, conditioning, SIDE)
        with pytest.raises(BackendError, match="recompile"):
            warm(compiled[0], smallest, conditioning, 2 * SIDE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "regional"),
    [("eager", False), ("eager", True), ("inductor", False), ("inductor", True)],
)
def test_no_random_edit_compiles_anything_whole_or_by_block(
    smallest, layers, tokenize, embed, tmp_path, backend, regional
):
    compiled = made_warm(
        smallest, tokenize, embed, backend=backend, regional=regional, cache=tmp_path
    )
    graphs = dict(compiled[0].network.graphs.seconds)
    with torch.compiler.set_stance("fail_on_recompile"):
        run_random_edits(compiled, layers, tokenize, embed, 200)
    assert compiled[0].network.graphs.seconds == graphs
