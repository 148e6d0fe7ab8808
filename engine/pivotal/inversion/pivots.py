"""Keeping the source's row on its stored trajectory while targets go their own way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.control import Control


@dataclass(frozen=True)
class KeptOnPivots:
    """A control around an edit's own: each step ends with the sources on their pivots.

    pivots: [R, steps + 1, C, h, w], noisiest first. The edit sees the source where it belongs.
    """

    control: Control
    pivots: Tensor

    def routes(self, step: int) -> AttentionRoutes | None:
        return self.control.routes(step)

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        mine = self.sources(latents.shape[0]).to(latents.device)
        source = mine == torch.arange(latents.shape[0], device=latents.device)
        placed = torch.where(source[:, None, None, None], self.pivots[:, step + 1], latents)
        return self.control.after_step(step, placed, word_maps)

    def sources(self, rows: int) -> Tensor:
        return self.control.sources(rows)

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        return self.control.takes_fitted_null(step, rows)
