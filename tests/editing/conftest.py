"""A tokenizer, a text encoder and UNets, tiny and seeded; prompts are `LENGTH` tokens long."""

import copy
import functools
import re
from zlib import crc32

import pytest
import torch
from diffusers import UNet2DConditionModel

from pivotal.driver import drive
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.ddim import sample
from pivotal.schedule import NoiseLevels, ScheduleConfig
from pivotal.tokens import Tokens

LENGTH, WIDTH, STEPS, GUIDANCE = 16, 24, 5, 4.0
VOCABULARY = 50_000
START, END = VOCABULARY, VOCABULARY + 1


@pytest.fixture(scope="package")
def tokenize():
    """Up to four letters a token, punctuation marks their own; start, end, padded with ends."""

    def make(prompt, length=LENGTH):
        found = list(re.finditer(r"\w{1,4}|[^\w\s]", prompt))
        used = len(found) + 2
        assert used <= length
        ids = [crc32(match.group().lower().encode()) % VOCABULARY for match in found]
        return Tokens(
            prompt,
            ids=(START, *ids, *[END] * (length - used + 1)),
            spans=(None, *[match.span() for match in found], *[None] * (length - used + 1)),
            length=used,
        )

    return make


@pytest.fixture(scope="package")
def embed():
    """Tokens to hidden states [L, WIDTH] float64: a table of tokens plus one of positions."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(VOCABULARY + 2, WIDTH, generator=generator, dtype=torch.float64)
    places = 0.3 * torch.randn(77, WIDTH, generator=generator, dtype=torch.float64)
    return lambda tokens: table[list(tokens.ids)] + places[: len(tokens.ids)]


@pytest.fixture(scope="package")
def unet():
    """Attention at the latents' side and at a half and a quarter of it. float64.

    Cross-attention is scaled up, or random weights hardly listen to the text; the prediction is
    scaled down, or rounding errors grow along the steps.
    """
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=12,
        block_out_channels=(16, 24, 24),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"attn2\.to_.*weight", name):
                parameter.mul_(2.0)
            if name.startswith("conv_out"):
                parameter.mul_(0.3)
    return model.eval()


@pytest.fixture(scope="package")
def network(unet):
    """`unet` in a dtype."""
    return functools.cache(lambda dtype: copy.deepcopy(unet).to(dtype))


@pytest.fixture(scope="package")
def routed(network):
    """A denoiser on a copy of `unet`: (dtype, impl, word_map_downscale) -> TorchDenoiser."""

    @functools.cache
    def make(dtype=torch.float64, impl="sdpa", word_map_downscale=2):
        copied = copy.deepcopy(network(dtype))
        routed_unet = RoutedUNet(copied, word_map_downscale=word_map_downscale, impl=impl)
        return TorchDenoiser(routed_unet, "epsilon")

    return make


@pytest.fixture(scope="package")
def layers(routed):
    routed_unet = routed().unet
    return Layers(
        tuple(layer.downscale for layer in routed_unet.self_layers),
        tuple(layer.downscale for layer in routed_unet.cross_layers),
    )


@pytest.fixture(scope="package")
def scheduler_config():
    """A scheduler's config as diffusers writes it, read by both sides.

    It ends less noisy than SD's: where a network's eps has nothing to do with the latents, these
    grow by 1/sqrt(alpha_bar), and rounding errors with them.
    """
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.003,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
        "clip_sample": False,
    }


@pytest.fixture(scope="package")
def schedule(scheduler_config):
    return NoiseLevels(ScheduleConfig.from_diffusers(scheduler_config)).schedule(STEPS)


@pytest.fixture(scope="package")
def noise():
    """[1, 4, 12, 12] float64."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, 12, 12, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="package")
def nulls(tokenize, embed):
    """Null embeddings as null-text inversion leaves them, another at each step: [steps, L, WIDTH]
    float64.
    """
    empty = embed(tokenize(""))
    generator = torch.Generator().manual_seed(3)
    fitted = torch.randn(STEPS, *empty.shape, generator=generator, dtype=torch.float64)
    return empty + 0.1 * fitted


@pytest.fixture(scope="package")
def sampled(schedule, embed, nulls):
    """Run [source, targets..] guided through a control: latents [R, C, h, w], in noise's dtype."""

    def run(denoiser, prompts, noise, control, guidance_scale=GUIDANCE):
        rows, dtype = len(prompts), noise.dtype
        cond = Conditioning(torch.stack([embed(tokens) for tokens in prompts]).to(dtype))
        return drive(
            sample(
                schedule,
                noise.expand(rows, -1, -1, -1).clone(),
                cond,
                lambda step: Conditioning(nulls[step].to(dtype).expand(rows, -1, -1)),
                guidance_scale,
                control,
            ),
            denoiser,
        )

    return run


@pytest.fixture(scope="package")
def control(tokenize, layers):
    """Prompt-to-Prompt from a source prompt and edits."""

    def make(source, edits, steps=STEPS):
        targets = [tokenize(edit.target) for edit in edits]
        return PromptToPrompt(tokenize(source), targets, edits, steps, layers)

    return make


@pytest.fixture(scope="package")
def edited(tokenize, sampled, control):
    """The whole edit of a source prompt: latents [1 + T, C, h, w] and the control."""

    def run(denoiser, source, edits, noise, **options):
        acting = control(source, edits)
        prompts = [tokenize(source), *[tokenize(edit.target) for edit in edits]]
        return sampled(denoiser, prompts, noise, acting, **options), acting

    return run
