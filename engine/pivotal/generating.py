"""Text to image, seeded so that a prompt's picture does not depend on its company."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .control import NoEdit
from .driver import Job
from .images import Pixels, from_tensor
from .results import Generated, Images, OutputType, as_output, check_output_type
from .running import Clock, Runner, Watch, require_finite
from .sampling.ddim import sample

Generators = torch.Generator | Sequence[torch.Generator]


def generate(
    runner: Runner,
    prompts: Sequence[str],
    *,
    negative_prompt: str,
    num_inference_steps: int,
    guidance_scale: float | None,
    noise: Tensor,
    seeds: Sequence[int] | None,
    output_type: OutputType,
    watch: Watch,
) -> Generated:
    """Sample B prompts by DDIM from noise [B, C, h, w] float32."""
    clock = Clock()
    check_output_type(output_type)
    scale = runner.checked_scale(guidance_scale)
    schedule = runner.model.levels.schedule(num_inference_steps)
    side = runner.model.autoencoder.scale
    size = (noise.shape[2] * side, noise.shape[3] * side)
    null = runner.encode([negative_prompt] * len(prompts), size)
    algorithm = sample(
        schedule,
        noise.to(runner.model.device),
        runner.encode(prompts, size),
        lambda step: null,
        scale,
        watch.over(NoEdit(), schedule),
    )
    clock.lap("encode")
    job = Job(algorithm, "generate", "generate", watch.on_progress)
    runner.run([job], watch.cancellation)
    latents = job.result()
    require_finite(latents, "generate")
    watch.check("generate")
    clock.lap("sample")
    pictures: list[Pixels] = []
    images: Images = latents
    if output_type != "latent":
        decoded = runner.decode(latents)
        pictures, images = from_tensor(decoded), as_output(decoded, output_type)
    clock.lap("decode")
    return Generated(
        images=images,
        pictures=pictures,
        latents=latents,
        prompts=list(prompts),
        seeds=None if seeds is None else list(seeds),
        negative_prompt=negative_prompt,
        size=size,
        guidance_scale=scale,
        schedule=schedule.record(),
        seconds=clock.laps,
        unet_rows=job.rows_asked,
    )


def initial_noise(
    runner: Runner,
    count: int,
    size: tuple[int, int],
    generator: Generators | None,
    seeds: Sequence[int],
) -> Tensor:
    """Noise [B, C, h, w] float32, on the CPU or the generator's device.

    Without a generator row i is drawn from `seeds[i]`. As in diffusers, one generator draws all
    rows at once, and a list holds one for each row. Raises ValueError for a wrong count.
    """
    autoencoder = runner.model.autoencoder
    shape = (autoencoder.channels, size[0] // autoencoder.scale, size[1] // autoencoder.scale)
    if isinstance(generator, torch.Generator):
        return torch.randn((count, *shape), generator=generator, device=generator.device)
    if generator is None:
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} prompts; one each is expected")
    return torch.stack(
        [torch.randn(shape, generator=each, device=each.device) for each in generator]
    )
