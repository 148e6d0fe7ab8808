"""One trial on drawn scenes: inverted and sampled back as one batch, in latents and in pictures."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.trials import Trial
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.engine import Engine
from pivotal.inversion.registry import method_named
from pivotal.quality import noise_std_ratio
from pivotal.query import Conditioning
from pivotal.runtime.torch_denoiser import TorchDenoiser
from shapes.cases import edit_cases
from shapes.images import psnr, to_images, to_tensor
from shapes.scenes import draw


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes as a batch: pictures uint8 [B, H, W, 3], latents [B, C, h, w], prompts."""

    pictures: NDArray[np.uint8]
    latents: Tensor
    conditioning: Conditioning
    null: Conditioning
    vae_db: float


def scenes_of(engine: Engine, count: int, seed: int) -> Scenes:
    cases = edit_cases(count, seed)
    pictures = np.stack([draw(case.scene)[0] for case in cases])
    with torch.no_grad():
        latents = engine.model.autoencoder.encode(to_tensor(pictures))
        conditioning = engine.model.text.encode([case.prompt for case in cases])
        null = engine.model.text.encode([""] * count)
    return Scenes(pictures, latents, conditioning, null, _db(engine, pictures, latents))


def measure(engine: Engine, scenes: Scenes, trial: Trial, steps: int) -> dict[str, Any]:
    """The trial's figures; a trial that fails gives a row with its error.

    latents_db: -10 log10 of the mean squared difference of latents, mean over scenes; picture_db:
    against the drawn picture. noise_std_ratio: 1 is what sampling expects. Rows are an image's.
    """
    method = method_named(trial.method)
    given = dict(trial.options)
    if method.fits_guidance:
        given["guidance_scale"] = trial.scale
    options = method.options_from(given)
    schedule, images = engine.model.levels.schedule(steps), len(scenes.pictures)
    denoiser = TorchDenoiser(engine.model.unet, engine.model.levels.config.prediction_type)
    row: dict[str, Any] = {
        "label": trial.label,
        "method": trial.method,
        "scale": trial.scale,
        "options": asdict(options),
        "vae_db": scenes.vae_db,
    }
    try:
        start = time.perf_counter()
        inverted = drive(
            method.invert(schedule, scenes.latents, scenes.conditioning, scenes.null, options),
            denoiser,
            max_rows=64,
        )
        middle = time.perf_counter()
        rows = (denoiser.rows_forward, denoiser.rows_backward)
        back = drive(
            method.replay(
                schedule, inverted, scenes.conditioning, scenes.null, trial.scale, NoEdit(),
                options,
            ),
            denoiser,
        )  # fmt: skip
        end = time.perf_counter()
    except Exception as error:  # a failed case is a row, not the end of the table
        return {**row, "error": repr(error)}
    squares = (back - scenes.latents).double().square().mean(dim=(1, 2, 3))
    ratio = noise_std_ratio(inverted.noise.float(), schedule.levels[-1])
    return {
        **row,
        "latents_db": float((-10 * squares.clamp(min=1e-20).log10()).mean()),
        "picture_db": _db(engine, scenes.pictures, back),
        "noise_std_ratio": ratio if math.isfinite(ratio) else None,
        "rows_invert": rows[0] / images,
        "rows_backward": rows[1] / images,
        "rows_replay": (denoiser.rows_forward - rows[0]) / images,
        "seconds_invert": (middle - start) / images,
        "seconds_replay": (end - middle) / images,
    }


def _db(engine: Engine, pictures: NDArray[np.uint8], latents: Tensor) -> float:
    with torch.no_grad():
        decoded = to_images(engine.model.autoencoder.decode(latents.float()))
    return float(psnr(pictures, decoded).mean())
