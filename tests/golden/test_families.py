"""Every family against an independent float64 reference, within the same tolerances."""

from dataclasses import asdict

import pytest
import torch
from diffusers import UNet2DConditionModel

from baselines import families as golden
from baselines.prompt_to_prompt import Controls
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.editing.edit import Edit
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.inversion import ddim, direct, null_text
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.schedule import NoiseLevels, ScheduleConfig
from pivotal.tokens import Tokens

STEPS, SCALE, UPDATES, LENGTH = 3, 3.0, 2, 7
CLOSE = {"rtol": 1e-6, "atol": 1e-8}

SD1 = {"attention_head_dim": 2}
SD2 = {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
SDXL = {
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}
LEADING = ScheduleConfig(steps_offset=1)
V = ScheduleConfig(steps_offset=1, prediction_type="v_prediction")
ZERO_SNR = ScheduleConfig(
    prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
)
FAMILIES = {
    "sd1": (SD1, LEADING),
    "sd2 eps": (SD2, LEADING),
    "sd2 v": (SD2, V),
    "sd2 v at zero terminal SNR": (SD2, ZERO_SNR),
    "sdxl": (SDXL, LEADING),
}


def small_unet(config):
    """Random, and heeds its prompt: cross-attention is scaled up."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=4,
        **config,
    )
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.to_v.weight.mul_(4)
                module.to_out[0].weight.mul_(4)
        unet.conv_out.weight.mul_(0.5)
    return unet.double().eval()


class Case:
    """One family: the same network, schedule, picture and prompts in our terms and in plain ones.

    Conditionings hold the source's row and a target's.
    """

    def __init__(self, network, config, latents, prompts):
        sdxl = "addition_embed_type" in network
        self.plain = small_unet(network)
        routed = RoutedUNet(small_unet(network), word_map_downscale=2)
        self.denoiser = TorchDenoiser(routed, config.prediction_type)
        self.schedule = NoiseLevels(config).schedule(STEPS)
        self.grid = golden.grid(asdict(config), STEPS)
        self.latents = 0.5 * latents(1)
        self.cond = prompts(2, seed=1, length=LENGTH, sdxl=sdxl)
        self.null = prompts(2, seed=2, length=LENGTH, sdxl=sdxl)
        self.one = [self.cond.select(torch.tensor([0])), self.null.select(torch.tensor([0]))]

    def invert(self, method, **options):
        return drive(
            method.invert(self.schedule, self.latents, *self.one, options_of(method, options)),
            self.denoiser,
        )

    def replay(self, method, inverted, cond=None, null=None, control=None):
        cond, null = cond or self.one[0], null or self.one[1]
        options = options_of(method, {})
        steps = method.replay(
            self.schedule, inverted, cond, null, SCALE, control or NoEdit(), options
        )
        return drive(steps, self.denoiser)

    def pivots(self):
        return golden.pivots(self.plain, self.grid, self.latents, text(self.one[0]))


def options_of(method, given):
    kinds = {ddim: ddim.DDIMOptions, null_text: null_text.NullTextOptions}
    return kinds.get(method, direct.DirectOptions)(**given)


def text(conditioning):
    return golden.Text(conditioning.hidden_states, conditioning.pooled, conditioning.time_ids)


@pytest.fixture(
    params=[
        # what these have of their own, the one at zero terminal SNR has too
        pytest.param(name, marks=pytest.mark.slow if name in ("sd2 eps", "sd2 v") else ())
        for name in FAMILIES
    ]
)
def case(request, latents, prompts):
    return Case(*FAMILIES[request.param], latents, prompts)


def test_the_schedule_is_the_references(case):
    levels = list(reversed(case.schedule.levels))
    assert [level.timestep for level in levels[:-1]] == case.grid.timesteps
    torch.testing.assert_close([level.alpha_bar for level in levels], case.grid.levels)


def test_ddim_inversion_and_its_replay_are_the_references(case):
    pivots = case.pivots()
    inverted = case.invert(ddim)
    torch.testing.assert_close(inverted.noise, pivots[-1], **CLOSE)
    wanted = golden.sample(
        case.plain, case.grid, pivots[-1], text(case.one[0]), [text(case.one[1])] * STEPS, SCALE
    )
    torch.testing.assert_close(case.replay(ddim, inverted), wanted, **CLOSE)


def fitted(case, **options):
    given = {"guidance_scale": SCALE, "inner_steps": UPDATES, "early_stop": 0.0}
    return case.invert(null_text, **given, early_stop_growth=0.0, **options)


def test_null_text_and_its_replay_are_the_references(case):
    pivots = case.pivots()
    one, null = map(text, case.one)
    nulls = golden.null_texts(case.plain, case.grid, pivots, one, null, SCALE, UPDATES)
    inverted = fitted(case)
    embeddings = inverted.stored["null_embeddings"][0]
    torch.testing.assert_close(embeddings, torch.cat([each.hidden for each in nulls]), **CLOSE)
    assert not torch.equal(embeddings[-1], case.one[1].hidden_states[0])
    wanted = golden.sample(case.plain, case.grid, pivots[-1], one, nulls, SCALE)
    torch.testing.assert_close(case.replay(null_text, inverted), wanted, **CLOSE)


def test_the_pooled_vector_is_fitted_on_request(latents, prompts):
    case = Case(*FAMILIES["sdxl"], latents, prompts)
    pivots = case.pivots()
    one, null = map(text, case.one)
    nulls = golden.null_texts(
        case.plain, case.grid, pivots, one, null, SCALE, UPDATES, pooled_too=True
    )
    inverted = fitted(case, fit_pooled=True)
    pooled = inverted.stored["null_pooled"][0]
    torch.testing.assert_close(pooled, torch.cat([each.pooled for each in nulls]), **CLOSE)
    assert (pooled != null.pooled).any()
    wanted = golden.sample(case.plain, case.grid, pivots[-1], one, nulls, SCALE)
    torch.testing.assert_close(case.replay(null_text, inverted), wanted, **CLOSE)


def test_a_pooled_vector_that_is_not_there_is_not_fitted(latents, prompts):
    case = Case(*FAMILIES["sd1"], latents, prompts)
    with pytest.raises(ValueError, match="which this model has not"):
        fitted(case, fit_pooled=True)


def test_direct_inversion_is_the_references(case):
    pivots = case.pivots()
    inverted = case.invert(direct)
    torch.testing.assert_close(inverted.stored["pivots"][0], torch.cat(pivots[::-1]), **CLOSE)
    torch.testing.assert_close(case.replay(direct, inverted), case.latents, **CLOSE)


def tokens(prompt):
    """A token a word."""
    spans = []
    for word in prompt.split():
        start = prompt.index(word)
        spans.append((start, start + len(word)))
    padding = LENGTH - 1 - len(spans)
    ids = (90, *[sum(map(ord, word)) for word in prompt.split()], *[91] * padding)
    return Tokens(prompt, ids, (None, *spans, *[None] * padding), len(spans) + 2)


def test_prompt_to_prompt_is_the_references(case):
    edit = Edit(
        "a dog", weights={"dog": 2.0}, cross_replace_steps=0.67, self_replace_steps=0.34,
    )  # fmt: skip
    unet = case.denoiser.unet
    layers = Layers(
        tuple(layer.downscale for layer in unet.self_layers),
        tuple(layer.downscale for layer in unet.cross_layers),
    )
    control = PromptToPrompt(tokens("a cat"), [tokens("a dog")], [edit], STEPS, layers)
    inverted = case.invert(ddim)
    found = case.replay(ddim, inverted.expand(2), case.cond, case.null, control)

    window = torch.zeros(STEPS, 1, LENGTH)
    window[:2] = 1
    doubled = torch.ones(1, LENGTH)
    doubled[0, 2] = 2
    controls = Controls(
        mapper=torch.eye(LENGTH)[None],
        equalizer=doubled,
        cross_alpha=window,
        self_window=(0, 1),
        self_max_pixels=16,
    )
    wanted = golden.edit(
        case.plain, case.grid, case.pivots()[-1], text(case.cond), text(case.null), controls, SCALE
    )
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(found[0], found[1])


def test_a_pooled_vector_matters(latents, prompts):
    case = Case(*FAMILIES["sdxl"], latents, prompts)
    other = Conditioning(case.one[0].hidden_states, case.one[0].pooled + 1, case.one[0].time_ids)
    steps = ddim.trajectory(case.schedule, case.latents, other, other, ddim.DDIMOptions())
    assert not torch.allclose(drive(steps, case.denoiser)[-1], case.invert(ddim).noise)
