"""What is asked of an inversion, checked before anything runs: how, and of which image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from .driver import require
from .images import FitPolicy, Fitted, ImageSource, Size, fit, read_image, warn_if_far
from .inversion.registry import Method, method_named
from .negative_prompts import checked_negative
from .running import Clock, Runner
from .schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """How to invert, checked and resolved: the same for every image of a call."""

    method: Method
    options: Any  # the method's own, typed
    guidance_scale: float
    schedule: Schedule
    size: Size
    policy: FitPolicy
    multiple: int  # of pixels, along a side
    trained: tuple[int, int]  # the size that the model was trained for
    negative_prompt: str = ""


@dataclass(frozen=True)
class Task:
    """One image to invert."""

    picture: Fitted
    image_digest: str
    prompt: str
    seconds: float  # of reading


def checked_settings(
    runner: Runner,
    method: str,
    num_inference_steps: int,
    guidance_scale: float | None,
    options: Mapping[str, Any] | None,
    size: Size | None,
    policy: FitPolicy,
    negative_prompt: str = "",
) -> Settings:
    """Raises ValueError for a wrong argument, BackendError for a method that can't run here."""
    chosen = method_named(method)
    scale = runner.checked_scale(guidance_scale)
    if policy not in get_args(FitPolicy):
        raise ValueError(
            f"policy={policy!r} is unknown; accepted are {', '.join(get_args(FitPolicy))}"
        )
    given = dict(options or {})
    if chosen.fits_guidance:
        if "guidance_scale" in given:
            raise ValueError(f"{chosen.name} is fitted for guidance_scale; give it once, there")
        given["guidance_scale"] = scale
    typed = chosen.options_from(given)
    require(runner.denoiser, chosen.needed(typed), chosen.name)
    return Settings(
        chosen,
        typed,
        scale,
        runner.model.levels.schedule(num_inference_steps),
        "source" if size == "source" else runner.checked_size(size),
        policy,
        runner.model.autoencoder.scale,
        runner.model.default_size,
        checked_negative(negative_prompt, chosen, scale),
    )


def read_task(image: ImageSource, prompt: str, settings: Settings) -> Task:
    """Decode an image and fit it. Raises ValueError for one that can't be read."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r}; a text is expected")
    clock = Clock()
    source = read_image(image)
    picture = fit(source, settings.size, settings.policy, multiple=settings.multiple)
    warn_if_far(picture.size, settings.trained)
    clock.lap("read")
    return Task(picture, source.digest, prompt, clock.laps["read"])
