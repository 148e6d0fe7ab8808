"""Who looks on while a call runs: told of its steps, free to change its latents or to end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .attention_routes import AttentionRoutes
from .cancellation import Cancellation
from .control import Control
from .driver import Listener
from .schedule import Schedule

StepCallback = Callable[[int, float, dict[str, Tensor]], Mapping[str, Tensor]]
"""After a step: (step, timestep, {"latents"}) to {} or {"latents": changed ones}."""


@dataclass(frozen=True)
class Watch:
    """Who looks on while a call runs, and may change its latents or end it."""

    on_progress: Listener | None = None
    on_step_end: StepCallback | None = None
    cancellation: Cancellation | None = None

    def check(self, what: str) -> None:
        if self.cancellation is not None:
            self.cancellation.check(what)

    def over(self, control: Control, schedule: Schedule) -> Control:
        """The control, with its steps told to the callback."""
        if self.on_step_end is None:
            return control
        return _Watched(control, self.on_step_end, schedule)


class _Watched:
    """A control whose steps are told to a callback, after the edit has acted."""

    def __init__(self, inner: Control, callback: StepCallback, schedule: Schedule) -> None:
        self._inner = inner
        self._callback = callback
        self._schedule = schedule

    def routes(self, step: int) -> AttentionRoutes | None:
        return self._inner.routes(step)

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        latents = self._inner.after_step(step, latents, word_maps)
        timestep = self._schedule.levels[self._schedule.steps - step].timestep
        whole = int(timestep) if timestep == int(timestep) else timestep
        answer: Any = self._callback(step, whole, {"latents": latents})
        if not isinstance(answer, Mapping) or set(answer) - {"latents"}:
            said = list(answer) if isinstance(answer, Mapping) else type(answer).__name__
            raise ValueError(
                f"callback_on_step_end returned {said}; a dict is expected, {{}} to change "
                'nothing or {"latents": latents}'
            )
        changed = answer.get("latents", latents)
        if not isinstance(changed, Tensor) or changed.shape != latents.shape:
            said = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ValueError(
                f"callback_on_step_end returned latents {said} at step {step}; "
                f"{list(latents.shape)} are expected"
            )
        return changed.to(latents)

    def sources(self, rows: int) -> Tensor:
        return self._inner.sources(rows)

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        return self._inner.takes_fitted_null(step, rows)
