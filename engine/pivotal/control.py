"""Where editing meets sampling, whatever the method and whatever the edit."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .attention_routes import AttentionRoutes


class Control(Protocol):
    """What any method's replay asks of an edit: routes before a step, a last word after it.

    Steps count from the noisiest, 0.
    """

    def routes(self, step: int) -> AttentionRoutes | None:
        """Routes for this step's conditional rows (or for all rows, unconditional first)."""
        ...

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        """Latents [R, C, h, w] after the step, changed or not. word_maps: [R, K, mh, mw]."""
        ...

    def sources(self, rows: int) -> Tensor:
        """For each of R rows, the row it is an edit of: int64 [R]. A source is its own."""
        ...

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        """Which of R rows are guided away from their image's fitted null embedding at this step,
        and not from the empty prompt: bool [R]. Asked where a method has fitted one.
        """
        ...


class NoEdit:
    """The control of a plain reconstruction."""

    def routes(self, step: int) -> AttentionRoutes | None:
        return None

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        return latents

    def sources(self, rows: int) -> Tensor:
        return torch.arange(rows)

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        return torch.ones(rows, dtype=torch.bool)
