"""Methods judged by their edits: one row a method, means with 95 % intervals, nothing random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pivotal.bench.errors import require_extra
from pivotal.bench.intervals import mean_interval
from pivotal.editing.edit import Edit
from pivotal.engine import Engine
from pivotal.errors import PivotalError
from pivotal.images import Pixels

METHODS = ("ddim", "null-text", "null-text-line-search", "direct", "negative-prompt",
           "edit-friendly")  # fmt: skip
_DIGITS = 6

Listener = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """One edit and how it is judged.

    picture: uint8 [H, W, 3], of the model's size. unedited: bool [H, W], where it must stay as it
    is; None where nothing must. succeeded: reads the edited picture, where an oracle can.
    """

    name: str
    kind: str
    picture: Pixels
    prompt: str
    edit: Edit
    unedited: NDArray[np.bool_] | None
    succeeded: Callable[[Pixels], bool] | None = None


@dataclass(frozen=True)
class Judged:
    """A task's figures by one method. NaN where a figure has no meaning for it."""

    kind: str
    success: float
    background_psnr: float
    background_ssim: float
    source_psnr: float
    vae_psnr: float
    clip_score: float = math.nan
    error: str | None = None


FIGURES = ("success", "background_psnr", "background_ssim", "source_psnr", "vae_psnr",
           "clip_score")  # fmt: skip


def evaluate(
    engine: Engine,
    tasks: Sequence[Task],
    methods: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    score: Callable[[Pixels, str], float] | None = None,
    listener: Listener = lambda what, done, most: None,
) -> list[dict[str, Any]]:
    """A row for each method. Equal calls give equal rows: no times are in them.

    score: of an edited picture and its prompt, such as CLIP's, where its weights are at hand.
    """
    require_extra("skimage", what="judging pictures")
    rows = []
    for method in methods:
        judged = []
        for place, task in enumerate(tasks):
            listener(method, place, len(tasks))
            judged.append(_judge(engine, task, method, steps, guidance_scale, score))
        listener(method, len(tasks), len(tasks))
        rows.append({"method": method, **summary(judged), "kinds": _by_kind(judged)})
    return rows


def _judge(
    engine: Engine,
    task: Task,
    method: str,
    steps: int,
    guidance_scale: float,
    score: Callable[[Pixels, str], float] | None,
) -> Judged:
    try:
        inversion = engine.invert(
            task.picture,
            task.prompt,
            method=method,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        )
        edited = engine.edit(inversion, task.edit)
    except PivotalError as error:  # a method that fails on a picture has failed there
        nothing = (math.nan,) * 4
        return Judged(task.kind, 0.0, *nothing, error=str(error))
    picture, source = edited.pictures[0], inversion.picture.pixels
    return Judged(
        kind=task.kind,
        success=math.nan if task.succeeded is None else float(task.succeeded(picture)),
        background_psnr=masked_psnr(source, picture, task.unedited),
        background_ssim=masked_ssim(source, picture, task.unedited),
        source_psnr=edited.source.psnr,
        vae_psnr=edited.source.vae_psnr,
        clip_score=math.nan if score is None else score(picture, task.edit.target),
    )


def masked_psnr(
    source: Pixels, picture: Pixels, where: NDArray[np.bool_] | None, most: float = 60.0
) -> float:
    """Decibels over the chosen pixels alone; NaN where there are none. At most `most`: equal pixels
    would be infinite.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if where is None or not where.any():
        return math.nan
    if np.array_equal(source[where], picture[where]):
        return most
    found = peak_signal_noise_ratio(source[where], picture[where], data_range=255)
    return min(float(found), most)


def masked_ssim(source: Pixels, picture: Pixels, where: NDArray[np.bool_] | None) -> float:
    """Mean of the SSIM map over the chosen pixels; windows (7 x 7) reach past their edge."""
    from skimage.metrics import structural_similarity

    if where is None or not where.any():
        return math.nan
    _, similarity = structural_similarity(
        source, picture, channel_axis=2, data_range=255, full=True
    )
    return float(similarity[where].mean())


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Means with intervals over the tasks for which a figure has a meaning, and how many those are.

    The rule for NaN: such a task is left out of that figure's mean and count, never replaced.
    """
    found: dict[str, Any] = {"tasks": len(judged)}
    for name in FIGURES:
        values = [getattr(each, name) for each in judged]
        known = [value for value in values if not math.isnan(value)]
        found[name] = _interval(known) if known else None
    errors = [each.error for each in judged if each.error is not None]
    return {**found, "failed": len(errors), "errors": sorted(set(errors))[:3]}


def _interval(values: Sequence[float]) -> Mapping[str, float]:
    found = mean_interval(values)
    return {
        "mean": round(found.middle, _DIGITS),
        "low": round(found.low, _DIGITS),
        "high": round(found.high, _DIGITS),
        "count": len(values),
    }


def _by_kind(judged: Sequence[Judged]) -> dict[str, Any]:
    kinds = dict.fromkeys(each.kind for each in judged)
    return {kind: summary([each for each in judged if each.kind == kind]) for kind in kinds}
