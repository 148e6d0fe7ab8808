"""From an inversion back to latents and pictures, under any control; reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .control import Control, NoEdit
from .driver import Job
from .errors import InversionFileError, ModelError
from .images import psnr
from .inversion.registry import method_named
from .inversion_file import Inversion
from .model.fingerprint import DISPLAYED
from .negative_prompts import under_negative
from .quality import dominant_error
from .results import Reconstruction
from .running import Clock, Runner, as_one_call, require_finite
from .watching import Watch


def replay(
    runner: Runner,
    inversion: Inversion,
    prompts: Sequence[str],
    guidance_scale: float,
    control: Control,
    watch: Watch,
) -> Job[Tensor]:
    """Sample one row for each prompt back from an inversion, the source's first.

    The job's result is latents [R, C, h, w]. Raises what ended it.
    """
    model, size = runner.model, inversion.picture.size
    method = method_named(inversion.method)
    schedule = model.levels.schedule(inversion.num_inference_steps)
    conditioning = runner.encode(prompts, inversion.picture)
    inverted = inversion.inverted.to(model.device).expand(len(prompts))
    method.check(inverted, inversion.num_inference_steps, conditioning)
    options = method.options_from(inversion.options)
    algorithm = method.replay(
        schedule,
        inverted,
        conditioning,
        runner.encode([inversion.negative_prompt] * len(prompts), inversion.picture, negative=True),
        guidance_scale,
        watch.over(control, method.grid(schedule, options)),
        options,
    )
    name = f"{method.name} replay"
    job = Job(algorithm, name, name, watch.on_progress)
    rows = len(prompts)
    what = f"sampling {rows} row{'s' * (rows != 1)} of {size[0]} x {size[1]}"
    max_rows = runner.rows_that_fit(
        lambda planner: planner.sampling(
            what, size, rows=rows, least=rows, guided=guidance_scale != 1
        ),
        tied=rows,
    )
    runner.run([job], watch.cancellation, max_rows=max_rows)
    require_finite(job.result(), name)
    watch.check(name)
    return job


@as_one_call
def reconstruct(
    runner: Runner,
    inversion: Inversion,
    guidance_scale: float | None,
    watch: Watch,
    negative_prompt: str | None = None,
) -> Reconstruction:
    """The inversion without an edit, and what was lost to what."""
    clock = Clock()
    require_fitting(runner, inversion)
    scale = inversion.guidance_scale if guidance_scale is None else guidance_scale
    scale = runner.checked_scale(scale)
    inversion = under_negative(inversion, negative_prompt, scale)
    overflows = runner.overflows
    job = replay(runner, inversion, [inversion.prompt], scale, NoEdit(), watch)
    clock.lap("sample")
    found = reconstruction(runner, inversion, job, scale, clock, overflows)
    if found.dominant_error is not None:
        return found
    quiet = Watch(watch.on_progress, None, watch.cancellation)
    unguided = replay(runner, inversion, [inversion.prompt], 1.0, NoEdit(), quiet)
    alone = runner.pictures(unguided.result())[0]
    clock.lap("attribute")
    source = inversion.picture.pixels
    return found.attributed(dominant_error(source, found.round_trip, found.picture, alone))


def reconstruction(
    runner: Runner,
    inversion: Inversion,
    job: Job[Tensor],
    scale: float,
    clock: Clock,
    overflows: Mapping[str, int],
) -> Reconstruction:
    """What an ended replay's first row, the source's, says of its inversion. overflows: the
    runner's, before it began.
    """
    round_trip, picture = runner.pictures(
        torch.cat([inversion.latents.to(runner.model.device), job.result()[:1]])
    )
    clock.lap("decode")
    source = inversion.picture.pixels
    return Reconstruction(
        picture=picture,
        round_trip=round_trip,
        guidance_scale=scale,
        negative_prompt=inversion.negative_prompt,
        psnr=psnr(source, picture),
        vae_psnr=psnr(source, round_trip),
        dominant_error=dominant_error(source, round_trip, picture, picture if scale == 1 else None),
        seconds=clock.laps,
        unet_rows=job.rows_asked,
        ran_on=runner.ran_on(overflows),
    )


def require_fitting(runner: Runner, inversion: Inversion) -> None:
    """Raise ModelError for another model's inversion, InversionFileError for another schedule's."""
    model = runner.model
    if inversion.fingerprint != model.fingerprint:
        raise ModelError(
            f"the inversion was made with model {inversion.model!r}"
            f"{_added(inversion.report.get('additions'))} ({inversion.fingerprint[:DISPLAYED]}), "
            f"this engine runs {model.name!r}{_added(model.additions)} "
            f"({model.fingerprint[:DISPLAYED]}); load that model or invert again"
        )
    method = method_named(inversion.method)
    effective = method.grid(
        model.levels.schedule(inversion.num_inference_steps),
        method.options_from(inversion.options),
    ).record()
    for name in effective.keys() & inversion.schedule.keys():
        made_with, now = inversion.schedule[name], effective[name]
        if _plain(made_with) != _plain(now):
            raise InversionFileError(
                f"the inversion was made on a schedule whose {name} differ from what "
                f"{inversion.num_inference_steps} steps give now; invert the image again"
            )


def _added(additions: Any) -> str:
    """LoRAs and the like, as a sentence has them."""
    return (
        f" with {', '.join(map(str, additions))}"
        if isinstance(additions, list) and additions
        else ""
    )


def _plain(value: Any) -> Any:
    """As JSON has it: a file's tuples are lists."""
    return list(value) if isinstance(value, tuple) else value
