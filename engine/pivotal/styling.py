"""Style transfer from inverted noise: start where one picture came from, go where a prompt says."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .generating import generate
from .inversion.registry import method_named
from .inversion_file import Inversion
from .replaying import require_fitting
from .results import Generated, OutputType
from .running import Runner, as_one_call
from .sampling.draws import seeded
from .sampling.prompt_arithmetic import Path, interpolate
from .sampling_task import Prompt, Sampling, encoded
from .schedule import Schedule
from .watching import Watch


@as_one_call
def style(
    runner: Runner,
    inversion: Inversion,
    targets: Sequence[Prompt],
    *,
    amount: float,
    path: Path,
    negative_prompt: Prompt | None,
    guidance_scale: float | None,
    sampling: Sampling,
    seeds: Sequence[int],
    output_type: OutputType,
    watch: Watch,
) -> Generated:
    """Sample inverted noise afresh under each target, or a blend of the source's prompt with it.

    Nothing else that a method stores is used: its embeddings and offsets lead back to the source.
    """
    require_fitting(runner, inversion)
    source = encoded(runner, [inversion.prompt], inversion.picture)
    blends: list[Prompt] = [
        interpolate(source, encoded(runner, [each], inversion.picture), amount, path=path)
        for each in targets
    ]
    start, schedule = starting_point(runner, inversion)
    scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
    if negative_prompt is None:
        negative_prompt = "" if scale == 1 else inversion.negative_prompt
    return generate(
        runner,
        blends,
        negative_prompt=negative_prompt,
        schedule=schedule,
        guidance_scale=scale,
        noise=start.float().expand(len(targets), -1, -1, -1).clone(),
        draw=seeded(seeds),
        seeds=seeds if sampling.sampler.draws else None,
        sampling=sampling,
        output_type=output_type,
        watch=watch,
        picture=inversion.picture,
    )


def starting_point(runner: Runner, inversion: Inversion) -> tuple[torch.Tensor, Schedule]:
    """Latents [1, C, h, w] that sampling starts from, and the levels below: the noisiest, or where
    the method's replay begins if it skips steps.
    """
    method = method_named(inversion.method)
    options = method.options_from(inversion.options)
    whole = method.grid(runner.model.levels.schedule(inversion.num_inference_steps), options)
    skipped = method.first_step(options, whole.steps)
    inverted = inversion.inverted
    start = inverted.stored["start"] if "start" in method.stored else inverted.noise
    return start, Schedule(whole.levels[: whole.steps - skipped + 1], whole.config)
