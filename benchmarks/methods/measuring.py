"""One trial on drawn scenes: inverted, sampled back and edited, judged by decibels and oracle."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.trials import Trial
from pivotal.bench.shapes.scenes import draw
from pivotal.control import Control, NoEdit
from pivotal.driver import drive, drive_many
from pivotal.editing.edit import Edit
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.engine import Engine
from pivotal.inversion.base import Inverted
from pivotal.inversion.method import Method
from pivotal.inversion.registry import method_named
from pivotal.quality import noise_std_ratio
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from pivotal.schedule import Schedule
from shapes.cases import EditCase, edit_cases
from shapes.evaluate import EDITS
from shapes.images import psnr, to_images, to_tensor
from shapes.judge import judge_edit

MAX_ROWS = 64


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes as a batch: pictures uint8 [B, H, W, 3], latents [B, C, h, w], prompts.

    first: the place of the first one among the evaluation's cases. vae_dbs: decibels of each
    picture after the autoencoder alone.
    """

    cases: Sequence[EditCase]
    first: int
    pictures: NDArray[np.uint8]
    latents: Tensor
    conditioning: Conditioning
    null: Conditioning
    vae_dbs: list[float]

    @property
    def vae_db(self) -> float:
        return statistics.fmean(self.vae_dbs)


def scenes_of(engine: Engine, count: int, seed: int, first: int = 0) -> Scenes:
    """Cases `first` to `first + count` of the seed; the same ones however they are divided."""
    cases = edit_cases(first + count, seed)[first:]
    pictures = np.stack([draw(case.scene)[0] for case in cases])
    with torch.no_grad():
        latents = engine.model.autoencoder.encode(to_tensor(pictures))
        conditioning = engine.model.text.encode([case.prompt for case in cases])
        null = engine.model.text.encode([""] * count)
    vae = psnr(pictures, _decoded(engine, latents)).tolist()
    return Scenes(cases, first, pictures, latents, conditioning, null, vae)


def options_of(trial: Trial) -> Any:
    """The method's typed options; what is fitted for guidance is fitted for the replay's."""
    method = method_named(trial.method)
    fitted = {"guidance_scale": trial.scale} if method.fits_guidance else {}
    return method.options_from({**fitted, **trial.options})


def measure(
    engine: Engine, scenes: Scenes, trial: Trial, steps: int, *, edited: bool = True
) -> dict[str, Any]:
    """The trial's figures; a trial that fails gives a row with its error.

    latents_db: -10 log10 of the mean squared difference of latents, mean over scenes; picture_db:
    against the drawn picture; vae_db: the autoencoder's alone. noise_std_ratio: 1 is what sampling
    expects. Rows and seconds are an image's. edited: each scene's own word swap (`shapes.cases`,
    windows as in `shapes.evaluate`) runs beside its source: colour_success and shape_success are
    shares by the oracle, outside_db decibels against the source picture outside both objects;
    rows_replay and seconds_replay are then of source and target. `each` holds the scenes' own.
    """
    method, options = method_named(trial.method), options_of(trial)
    row: dict[str, Any] = {
        "label": trial.label,
        "method": trial.method,
        "scale": trial.scale,
        "options": asdict(options),
        "vae_db": scenes.vae_db,
    }
    try:
        return {**row, **_figures(engine, scenes, trial, method, options, steps, edited)}
    except Exception as error:  # a failed case is a row, not the end of the table
        return {**row, "error": repr(error)}


def _figures(
    engine: Engine,
    scenes: Scenes,
    trial: Trial,
    method: Method,
    options: Any,
    steps: int,
    edited: bool,
) -> dict[str, Any]:
    schedule, images = engine.model.levels.schedule(steps), len(scenes.cases)
    denoiser = TorchDenoiser(engine.model.unet, engine.model.levels.config.prediction_type)
    start = time.perf_counter()
    inverted = drive(
        method.invert(schedule, scenes.latents, scenes.conditioning, scenes.null, options),
        denoiser,
        max_rows=MAX_ROWS,
    )
    middle = time.perf_counter()
    rows = (denoiser.rows_forward, denoiser.rows_backward)
    replays = [
        replay_of(engine, scenes, place, trial, method, options, schedule, inverted, edited)
        for place in range(images)
    ]
    latents = torch.stack(
        [job.result() for job in drive_many(replays, denoiser, max_rows=MAX_ROWS)]
    )
    end = time.perf_counter()
    each = scores(engine, scenes, method, options, schedule, inverted, latents)
    return {
        **means(each),
        "rows_invert": rows[0] / images,
        "rows_backward": rows[1] / images,
        "rows_replay": (denoiser.rows_forward - rows[0]) / images,
        "seconds_invert": (middle - start) / images,
        "seconds_replay": (end - middle) / images,
        "each": each,
    }


def scores(
    engine: Engine,
    scenes: Scenes,
    method: Method,
    options: Any,
    schedule: Schedule,
    inverted: Inverted,
    latents: Tensor,
) -> list[dict[str, Any]]:
    """Each scene's own figures. latents: [B, rows, C, h, w], the source's row first and its edit's,
    if there is one, second.
    """
    if not bool(latents.isfinite().all()):
        raise FloatingPointError("latents that are not finite")
    back = latents[:, 0]
    squares = (back - scenes.latents).double().square().mean(dim=(1, 2, 3)).clamp(min=1e-20)
    each: list[dict[str, Any]] = [
        {"case": scenes.first + place, "kind": case.kind, "vae_db": scenes.vae_dbs[place]}
        for place, case in enumerate(scenes.cases)
    ]
    decibels = psnr(scenes.pictures, _decoded(engine, back))
    diverged = inverted.diagnostics.get("diverged")
    top = method.grid(schedule, options).levels[-1]
    for place, scene in enumerate(each):
        ratio = noise_std_ratio(inverted.noise[place].float(), top)
        scene["latents_db"] = float(-10 * squares[place].log10())
        scene["picture_db"] = float(decibels[place])
        scene["noise_std_ratio"] = ratio if math.isfinite(ratio) else None
        if diverged is not None:
            scene["diverged"] = bool(diverged[place])
    if latents.shape[1] > 1:
        pictures = _decoded(engine, latents[:, 1])
        for scene, case, picture in zip(each, scenes.cases, pictures, strict=True):
            scene["edit"] = judge_edit(case, picture).record()
    return each


def means(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of scenes together; None where there are none."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [float(value) for value in values if value is not None]
        return statistics.fmean(known) if known else None

    found = {
        name: mean([scene[name] for scene in each])
        for name in ("vae_db", "latents_db", "picture_db", "noise_std_ratio")
    }
    edits = [(scene["kind"], scene["edit"]) for scene in each if "edit" in scene]
    for kind in ("colour", "shape"):
        share = mean([edit["success"] for known, edit in edits if known == kind])
        found[f"{kind}_success"] = share
    found["outside_db"] = mean([edit["outside_db"] for _, edit in edits])
    found["diverged"] = mean([scene.get("diverged") for scene in each])
    return found


def replay_of(
    engine: Engine,
    scenes: Scenes,
    place: int,
    trial: Trial,
    method: Method,
    options: Any,
    schedule: Schedule,
    inverted: Inverted,
    edited: bool,
) -> Any:
    """The replay of one scene: its source's row, and its edit's beside it."""
    case = scenes.cases[place]
    control: Control = NoEdit()
    index = torch.tensor([place])
    conditioning, null = scenes.conditioning.select(index), scenes.null.select(index)
    mine = inverted.select(index)
    if edited:
        control = _swap(engine, case, method, options, schedule.steps)
        with torch.no_grad():
            target = engine.model.text.encode([case.target])
        conditioning = Conditioning.cat([conditioning, target])
        null, mine = Conditioning.cat([null, null]), mine.expand(2)
    return method.replay(schedule, mine, conditioning, null, trial.scale, control, options)


def _swap(
    engine: Engine, case: EditCase, method: Method, options: Any, steps: int
) -> PromptToPrompt:
    """The case's edit as `shapes.evaluate` asks for it."""
    model = engine.model
    layers = Layers(
        tuple(layer.downscale for layer in model.unet.self_layers),
        tuple(layer.downscale for layer in model.unet.cross_layers),
        model.family.self_injection_downscale,
    )
    edit = Edit(case.target, blend=case.words, **edits_for(method)[case.kind])
    source, target = model.text.tokens(case.prompt), model.text.tokens(case.target)
    return PromptToPrompt(
        source, [target], [edit], steps, layers, method.first_step(options, steps)
    )


def edits_for(method: Method) -> dict[str, dict[str, Any]]:
    """The edits' settings by kind, less the window of what this method does not fit."""
    fits = "null_embeddings" in method.stored
    return {
        kind: {k: v for k, v in settings.items() if fits or k != "null_text_steps"}
        for kind, settings in EDITS.items()
    }


def _decoded(engine: Engine, latents: Tensor) -> NDArray[np.uint8]:
    with torch.no_grad():
        return to_images(engine.model.autoencoder.decode(latents.float()))
