"""What a comparison of methods gives, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .images import Fitted
from .inversion_file import Inversion
from .noise_figures import NoiseFigures
from .records import finite
from .results import Edited, Reconstruction


@dataclass(frozen=True)
class ComparedMethod:
    """One method on the image; where it could not, `error` says why and all else is None.

    seconds, unet_rows: of the inversion; what sampling back took is the reconstruction's own.
    latents_psnr: decibels of the latents sampled back, -10 log10 of the mean squared difference: it
    goes on where the picture's stop at the autoencoder's. outside_psnr: decibels of the edit
    against the source where nothing was to change.
    """

    method: str
    error: str | None = None
    inversion: Inversion | None = None
    reconstruction: Reconstruction | None = None
    latents_psnr: float | None = None
    noise: NoiseFigures | None = None
    edited: Edited | None = None
    outside_psnr: float | None = None
    seconds: float | None = None
    unet_rows: int | None = None

    def record(self) -> dict[str, Any]:
        found = self.reconstruction
        if self.error is not None or found is None or self.noise is None:
            return {"method": self.method, "error": self.error}
        return {
            "method": self.method,
            "error": None,
            "seconds": {"invert": self.seconds, "sample": found.seconds["sample"]},
            "unet_rows": {"invert": self.unet_rows, "sample": found.unet_rows},
            "psnr": finite(found.psnr),
            "vae_psnr": finite(found.vae_psnr),
            "latents_psnr": None if self.latents_psnr is None else finite(self.latents_psnr),
            "noise": asdict(self.noise),
            "outside_psnr": None if self.outside_psnr is None else finite(self.outside_psnr),
        }


@dataclass(frozen=True)
class Comparison:
    """Methods beside each other on one image, in the order asked for.

    fresh_noise: the figures of drawn noise of the same size. mask: bool [H, W], True where the edit
    was to change the picture; None where its own blend decided.
    """

    prompt: str
    target: str | None
    picture: Fitted
    guidance_scale: float
    negative_prompt: str
    num_inference_steps: int
    fresh_noise: NoiseFigures
    mask: Tensor | None
    methods: tuple[ComparedMethod, ...]
    model: str
    device: str
    dtype: str
    schedule: Mapping[str, Any]

    @property
    def done(self) -> list[ComparedMethod]:
        """Those that could."""
        return [each for each in self.methods if each.error is None]

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
            "steps": self.num_inference_steps,
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "schedule": dict(self.schedule),
            "fresh_noise": asdict(self.fresh_noise),
            "methods": [each.record() for each in self.methods],
        }
