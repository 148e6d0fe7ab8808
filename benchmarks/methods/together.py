"""Many trials at once: what they ask next is one UNet batch, whatever their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from methods.measuring import (
    MAX_ROWS,
    Scenes,
    means,
    options_of,
    replay_of,
    scores,
)
from methods.trials import Trial
from pivotal.driver import drive_many
from pivotal.engine import Engine
from pivotal.inversion.registry import method_named
from pivotal.runtime.torch_denoiser import TorchDenoiser


def measure_together(
    engine: Engine, scenes: Scenes, trials: Sequence[Trial], steps: int
) -> list[dict[str, Any]]:
    """The trials' rows as `measure` gives them without edits, but for seconds and rows backward,
    which no trial has of its own here: rows_invert are the rows asked, whatever for.
    """
    schedule, images = engine.model.levels.schedule(steps), len(scenes.cases)
    denoiser = TorchDenoiser(engine.model.unet, engine.model.levels.config.prediction_type)
    methods = [(method_named(trial.method), options_of(trial)) for trial in trials]
    up = drive_many(
        [
            method.invert(schedule, scenes.latents, scenes.conditioning, scenes.null, options)
            for method, options in methods
        ],
        denoiser,
        max_rows=MAX_ROWS,
    )
    well = [place for place, job in enumerate(up) if job.error is None]
    down = drive_many(
        [
            replay_of(
                engine, scenes, image, trials[place], *methods[place], schedule,
                up[place].result(), False,
            )
            for place in well
            for image in range(images)
        ],
        denoiser,
        max_rows=MAX_ROWS,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for place, (trial, (method, options)) in enumerate(zip(trials, methods, strict=True)):
        row: dict[str, Any] = {
            "label": trial.label,
            "method": trial.method,
            "scale": trial.scale,
            "options": asdict(options),
            "vae_db": scenes.vae_db,
        }
        rows.append(row)
        try:
            inverted = up[place].result()
            start = well.index(place) * images
            jobs = down[start : start + images]
            latents = torch.stack([job.result() for job in jobs])
            each = scores(engine, scenes, method, options, schedule, inverted, latents)
        except Exception as error:  # a failed case is a row
            row["error"] = repr(error)
            continue
        row |= means(each)
        row |= {
            "rows_invert": up[place].rows_asked / images,
            "rows_backward": None,
            "rows_replay": sum(job.rows_asked for job in jobs) / images,
            "seconds_invert": None,
            "seconds_replay": None,
            "each": each,
        }
    return rows
