"""Methods judged by their edits: one row a method, means with 95 % intervals, nothing random."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pivotal.bench.background import masked_psnr, masked_ssim
from pivotal.bench.errors import require_extra
from pivotal.bench.intervals import mean_interval
from pivotal.bench.judged import Judged, JudgedFile
from pivotal.editing.edit import Edit
from pivotal.engine import Engine
from pivotal.images import Pixels
from pivotal.inversion.registry import method_named

logger = logging.getLogger(__name__)

METHODS = ("ddim", "null-text", "null-text-line-search", "direct", "negative-prompt",
           "edit-friendly")  # fmt: skip
_DIGITS = 6

Listener = Callable[[str, int, int], None]
Score = Callable[[Pixels, Pixels, NDArray[np.bool_] | None, str], float]
"""Of a source, its edited picture, where that must stay as it is, and the target prompt."""


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


FIGURES = ("success", "background_psnr", "background_ssim", "source_psnr", "vae_psnr",
           "clip_score", "lpips")  # fmt: skip


def evaluate(
    engine: Engine,
    tasks: Sequence[Task],
    methods: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    scores: Mapping[str, Score] | None = None,
    kept: JudgedFile | None = None,
    listener: Listener = lambda what, done, most: None,
) -> list[dict[str, Any]]:
    """A row for each method. Equal calls give equal rows: no times are in them.

    A task that fails counts as no success and is named with its error. scores: by figure, such as
    clip_score, of those whose weights are at hand. kept: what it holds is not judged again.
    """
    require_extra("skimage", what="judging pictures")
    judge = _Judge(engine, steps, guidance_scale, scores or {})
    kept = kept or JudgedFile(None, {})
    rows = []
    for method in methods:
        judged = []
        for place, task in enumerate(tasks):
            listener(method, place, len(tasks))
            key = kept.key(method, task.name, task.kind, task.prompt, task.edit, task.picture,
                           task.unedited, steps, guidance_scale)  # fmt: skip
            found = kept.get(key)
            if found is None:
                found = judge(task, method)
                kept.put(key, method, found)
            judged.append(found)
        listener(method, len(tasks), len(tasks))
        rows.append({"method": method, **summary(judged), "kinds": _by_kind(judged)})
    return rows


@dataclass(frozen=True)
class _Judge:
    engine: Engine
    steps: int
    guidance_scale: float
    scores: Mapping[str, Score]

    def __call__(self, task: Task, method: str) -> Judged:
        try:
            return self._judged(task, method)
        except Exception as error:  # one task is a figure, not the end of the run
            logger.info("%s: %s fails", method, task.name, exc_info=True)
            return Judged(task.name, task.kind, 0.0, error=f"{type(error).__name__}: {error}")

    def _judged(self, task: Task, method: str) -> Judged:
        inversion = self.engine.invert(
            task.picture,
            task.prompt,
            method=method,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
        )
        edited = self.engine.edit(inversion, edit_after(method, task.edit))
        picture, source = edited.pictures[0], inversion.picture.pixels
        scored = {
            name: score(source, picture, task.unedited, task.edit.target)
            for name, score in self.scores.items()
        }
        return Judged(
            task=task.name,
            kind=task.kind,
            success=math.nan if task.succeeded is None else float(task.succeeded(picture)),
            background_psnr=masked_psnr(source, picture, task.unedited),
            background_ssim=masked_ssim(source, picture, task.unedited),
            source_psnr=edited.source.psnr,
            vae_psnr=edited.source.vae_psnr,
            clip_score=scored.get("clip_score", math.nan),
            lpips=scored.get("lpips", math.nan),
        )


def edit_after(method: str, edit: Edit) -> Edit:
    """Without the window of a fitted null embedding where the method fits none."""
    fits = "null_embeddings" in method_named(method).stored
    return edit if fits else replace(edit, null_text_steps=1.0)


def summary(judged: Sequence[Judged]) -> dict[str, Any]:
    """Means with intervals over the tasks for which a figure has a meaning, and how many those are.

    The rule for NaN: such a task is left out of that figure's mean and count, never replaced.
    """
    found: dict[str, Any] = {"tasks": len(judged)}
    for name in FIGURES:
        values = [getattr(each, name) for each in judged]
        known = [value for value in values if not math.isnan(value)]
        found[name] = _interval(known) if known else None
    errors = {each.task: each.error for each in judged if each.error is not None}
    return {**found, "failed": len(errors), "errors": errors}


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
