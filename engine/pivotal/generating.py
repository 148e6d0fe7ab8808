"""Text to image, seeded so that a prompt's picture does not depend on its company."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .control import NoEdit
from .driver import Job
from .images import Fitted, Pixels, from_tensor
from .negative_prompts import require_negative
from .results import Generated, Images, OutputType, as_output, check_output_type
from .running import Clock, Runner, as_one_call, require_finite
from .sampling.draws import Draw, drawn_from
from .sampling_task import Prompt, Sampling, encoded, texts_of
from .schedule import Schedule
from .watching import Watch

Generators = torch.Generator | Sequence[torch.Generator]


@as_one_call
def generate(
    runner: Runner,
    prompts: Sequence[Prompt],
    *,
    negative_prompt: Prompt,
    schedule: Schedule,
    guidance_scale: float | None,
    noise: Tensor,
    draw: Draw,
    seeds: Sequence[int] | None,
    sampling: Sampling,
    output_type: OutputType,
    watch: Watch,
    max_rows: int | None = None,
    picture: Fitted | None = None,
) -> Generated:
    """Sample B prompts from noise [B, C, h, w] float32 at the schedule's noisiest level.

    picture: that the noise was inverted from.
    """
    clock = Clock()
    check_output_type(output_type)
    scale = runner.checked_scale(guidance_scale)
    require_negative(negative_prompt, scale)
    side = runner.model.autoencoder.scale
    size = (noise.shape[2] * side, noise.shape[3] * side)
    algorithm = sampling.algorithm(
        schedule,
        noise.to(runner.model.device),
        encoded(runner, prompts, picture or size),
        encoded(runner, [negative_prompt] * len(prompts), picture or size, negative=True),
        scale,
        watch.over(NoEdit(), schedule),
        draw,
    )
    clock.lap("encode")
    overflows = runner.overflows
    job = Job(algorithm, "generate", "generate", watch.on_progress)
    what = f"generating {len(prompts)} of {size[0]} x {size[1]}"
    max_rows = runner.rows_that_fit(
        lambda planner: planner.sampling(what, size, rows=len(prompts), guided=scale != 1), max_rows
    )
    runner.run([job], watch.cancellation, max_rows=max_rows)
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
        prompts=texts_of(prompts),
        seeds=None if seeds is None else list(seeds),
        negative_prompt=texts_of([negative_prompt])[0],
        size=size,
        guidance_scale=scale,
        schedule=schedule.record(),
        sampling=sampling.record(),
        seconds=clock.laps,
        unet_rows=job.rows_asked,
        ran_on=runner.ran_on(overflows),
    )


def initial_noise(
    runner: Runner,
    count: int,
    size: tuple[int, int],
    generator: Generators | None,
    seeds: Sequence[int],
) -> tuple[Tensor, Draw]:
    """Noise [B, C, h, w] float32, on the CPU or the generator's device, and the source of more.

    Without a generator row i is drawn from `seeds[i]`. As in diffusers, one generator draws all
    rows at once, and a list holds one for each row. Raises ValueError for a wrong count.
    """
    autoencoder = runner.model.autoencoder
    shape = (autoencoder.channels, size[0] // autoencoder.scale, size[1] // autoencoder.scale)
    if generator is None:
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    if not isinstance(generator, torch.Generator) and len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} prompts; one each is expected")
    draw = drawn_from(generator)
    one = generator if isinstance(generator, torch.Generator) else generator[0]
    return draw(0, torch.empty((count, *shape), device=one.device)), draw
