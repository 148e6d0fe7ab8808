"""Peak memory of a Prompt-to-Prompt step beside plain sampling's with as many rows.

Bytes are the CPU allocator's, from the profiler's memory events: what operations allocate inside
themselves counts, weights made before the step do not.
"""

import logging

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile

from pivotal.editing.edit import Edit
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.sampling.guidance import guided_noise
from pivotal.schedule import NoiseLevels, ScheduleConfig
from pivotal.tokens import Tokens

logger = logging.getLogger(__name__)

LENGTH = 77
SOURCE = "a red cat on the mat"
EDITS = [
    Edit("a red dog on the mat", blend=("cat", "dog"), subtract=("mat",)),
    Edit("a red cat on the leather sofa", weights={"leather": 2.0}),
]


def tokenize(prompt):
    """A word is a token."""
    spans, at = [], 0
    for word in prompt.split():
        at = prompt.index(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    ids = [sum(map(ord, prompt[first:last])) for first, last in spans]
    padding = LENGTH - len(ids) - 1
    return Tokens(
        prompt, (0, *ids, *[1] * padding), (None, *spans, *[None] * padding), len(ids) + 2
    )


def peak_bytes(run):
    """The most bytes that `run` had allocated at once, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert events
    live = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        live += size
        peak = max(peak, live)
    return peak


def step_peaks(unet, side, *, downscale, impl="auto"):
    """Peaks of one guided step of [source, two targets], six rows: (plain, edited)."""
    network = RoutedUNet(unet, word_map_downscale=downscale, impl=impl)
    denoiser = TorchDenoiser(network, "epsilon")
    layers = Layers(
        tuple(layer.downscale for layer in network.self_layers),
        tuple(layer.downscale for layer in network.cross_layers),
    )
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    square = torch.randn(3, 4, side, side, generator=generator)
    cond, null = (
        Conditioning(torch.randn(3, LENGTH, width, generator=generator)) for _ in range(2)
    )
    targets = [tokenize(edit.target) for edit in EDITS]
    control = PromptToPrompt(tokenize(SOURCE), targets, EDITS, 50, layers)
    level = NoiseLevels(ScheduleConfig()).schedule(50).levels[-1]

    def step(latents, routes):
        asking = guided_noise(latents, level, cond, null, 7.5, routes)
        query = next(asking)
        with torch.no_grad():
            answer = denoiser.answer(query)
        with pytest.raises(StopIteration):
            asking.send(answer)

    step(square[..., :8, :8], None)  # what a first call sets up once is not the step's
    return (
        peak_bytes(lambda: step(square, None)),
        peak_bytes(lambda: step(square, control.routes(0))),
    )


def test_peak_bytes_are_counted_inside_operations_too():
    ones = torch.ones(1000, 250)

    def run():
        kept = ones + 1  # 1 MB
        ones.sort(dim=0)  # 1 MB of values, 2 MB of indices
        return kept

    assert 4_000_000 <= peak_bytes(run) < 8_000_000


@pytest.fixture
def small():
    """Little else than attention: an N x 77 map is as large as the widest activation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()
    torch.set_num_threads(threads)


def test_an_edited_step_needs_no_more_memory_than_a_plain_one(small):
    plain, edited = step_peaks(small, 48, downscale=2)
    assert edited < 1.1 * plain


def test_explicit_maps_would_need_more(small):
    plain, edited = step_peaks(small, 48, downscale=2, impl="reference")
    assert edited > 1.2 * plain


SD1 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}  # what of SD 1.5's unet/config.json is not the class's default


@pytest.mark.slow
def test_an_edited_step_of_stable_diffusion_needs_no_more_memory_than_a_plain_one():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SD1)
    unet = unet.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.02, generator=generator)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    plain, edited = step_peaks(unet, 64, downscale=4)
    logger.info("plain %d bytes, edited %d bytes, %.4f times", plain, edited, edited / plain)
    assert edited < 1.1 * plain
