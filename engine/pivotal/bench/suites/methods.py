"""Every inversion method: seconds an image, and decibels beside the autoencoder's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from pivotal.bench.cases import Case
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.checks import require_finite
from pivotal.bench.suites.plan import PROMPT, Plan, picture
from pivotal.engine import Engine
from pivotal.inversion.registry import METHODS
from pivotal.inversion_file import Inversion

SUITE = "methods"
WORST = 12.0  # decibels; a grey picture has about as many, and an inversion that diverged fewer
# Random weights never come under these thresholds, or at once: what stops early is switched off.
_NO_EARLY_STOP = {"early_stop": -1.0, "early_stop_growth": 0.0, "tolerance": 0.0}
_QUICK = ("ddim", "direct", "null-text", "null-text-line-search", "null-text-parallel",
          "negative-prompt", "edit-friendly", "fixed-point")  # fmt: skip


def cases(plan: Plan) -> Iterator[Case]:
    for name in _QUICK if plan.quick else METHODS:
        options: dict[str, Any] = {}
        if plan.random:
            known = {each.name for each in fields(METHODS[name].options)}
            options = {key: value for key, value in _NO_EARLY_STOP.items() if key in known}
        settings = {
            "model": plan.model, "dtype": plan.dtype, "method": name, "steps": plan.steps,
            "options": options, "images": 1,
        }  # fmt: skip
        title = f"{name}, {plan.steps} steps"
        yield Case(SUITE, title, _preparing(plan, name, options), settings, f"{plan.model}")


def _preparing(plan: Plan, method: str, options: Mapping[str, Any]) -> Any:
    def run(engine: Engine) -> Inversion:
        return engine.invert(
            picture(), PROMPT, method=method, num_inference_steps=plan.steps, options=options
        )

    def check(inversion: Inversion) -> Mapping[str, Any]:
        """Finite, and with trained weights sampled back to something like the picture.

        DDIM's own kind is sampled back at guidance 1: under guidance it is not meant to come back.
        """
        require_finite(inversion.inverted.noise, f"{method}'s noise")
        scale = 1.0 if METHODS[method].guidance[1] < inversion.guidance_scale else None
        back = plan.engine.reconstruct(inversion, guidance_scale=scale)
        if not plan.random and back.psnr < WORST:
            raise WrongResultError(f"{method} comes back at {back.psnr:.1f} dB; {WORST:g} or more "
                                   "are expected")  # fmt: skip
        return {
            "psnr": back.psnr,
            "vae_psnr": back.vae_psnr,
            "guidance_scale": back.guidance_scale,
            "unet_rows": inversion.report["unet_rows"],
            "noise_std_ratio": inversion.report["noise_std_ratio"],
        }

    return lambda: plan.prepared(run, check)
