"""What every fit of null embeddings shares: a timestep's residual, and the way down the pivots.

Mokady et al. 2022 (arXiv:2211.09794), Algorithm 1, less its optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.query import (
    Algorithm,
    Conditioning,
    Denoise,
    Noise,
    NoiseGradient,
    Progress,
    Wrt,
    every_row,
)
from pivotal.sampling.steps import ddim_coefficients, guided_step
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted


@dataclass(frozen=True)
class Residual:
    """Rows of Eq. 3: guided DDIM steps end beside their pivots by `slope * eps_u + short`.

    latents, short: [B, C, h, w]; timesteps [B] float32, alpha_bars [B] float64, slope [B]. A step
    is `a z + b eps_w`, so guidance, step and pivot fold into slope and short.
    """

    latents: Tensor
    timesteps: Tensor
    alpha_bars: Tensor
    slope: Tensor
    short: Tensor

    @staticmethod
    def of_step(
        latents: Tensor,
        pivot: Tensor,
        high: NoiseLevel,
        low: NoiseLevel,
        eps_cond: Tensor,
        guidance_scale: float,
    ) -> Residual | None:
        """All images at one timestep. None where no embedding changes anything: at guidance 1, at
        a last step that does not move, and at zero terminal SNR, where eps is not the network's.
        """
        if high.alpha_bar == 0:
            return None
        a, b = ddim_coefficients(high, low)
        slope = b * (1 - guidance_scale)
        if slope == 0:
            return None
        timesteps, alpha_bars = every_row(latents, high)
        return Residual(
            latents,
            timesteps,
            alpha_bars,
            slope=latents.new_full((latents.shape[0],), slope),
            short=a * latents + b * guidance_scale * eps_cond - pivot,
        )

    @property
    def rows(self) -> int:
        return self.latents.shape[0]

    def select(self, rows: Tensor) -> Residual:
        """The given rows, int64 [R]."""
        return Residual(
            self.latents[rows],
            self.timesteps[rows],
            self.alpha_bars[rows],
            self.slope[rows],
            self.short[rows],
        )

    def gradient(self, null: Conditioning, wrt: Wrt = "hidden_states") -> NoiseGradient:
        """The question for the loss `mean((slope * eps_u + short)^2)` and its gradient."""
        return NoiseGradient(
            self.latents, self.timesteps, self.alpha_bars, null,
            scale=self.slope, offset=self.short, wrt=wrt,
        )  # fmt: skip

    def noise(self, null: Conditioning) -> Denoise:
        """The question for eps_u alone."""
        return Denoise(self.latents, self.timesteps, self.alpha_bars, null)

    def moved_by(self, eps: Tensor) -> Tensor:
        """How the step's end moves with eps_u [B, C, h, w]: `slope * eps`."""
        return self.slope[:, None, None, None] * eps

    def at(self, eps: Tensor) -> Tensor:
        """Beside the pivots by so much, [B, C, h, w]."""
        return self.moved_by(eps) + self.short

    def loss(self, eps: Tensor) -> Tensor:
        """[B]."""
        return self.at(eps).square().mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Fitted:
    """null: what was found. losses: [B, n], one before each update, NaN where there was none.
    uncond: the network's answer to `null`, where the fit asked for it.
    """

    null: Conditioning
    losses: Tensor
    uncond: Noise | None = None


Fit = Callable[[Residual, Conditioning, int], Algorithm[Fitted]]
"""Of a residual, the embedding to start from, and the step, 0 the noisiest."""


def along_pivots(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    fit: Fit,
    updates: int,
    *,
    keep_pooled: bool = False,
) -> Algorithm[Inverted]:
    """DDIM's pivots at guidance 1, and down along them a fit each timestep, from the last one's.

    Latents [B, C, h, w] float32 to noise and `null_embeddings` [B, steps, L, D] float32.
    keep_pooled: store `null_pooled` [B, steps, P] too. Diagnostics: `losses` [B, steps, updates].
    """
    pivots = yield from ddim.trajectory(schedule, latents, conditioning, null, ddim.DDIMOptions())
    latents = pivots[-1]
    unfitted = latents.new_full((latents.shape[0], updates), torch.nan)
    embeddings, pooled, losses = [], [], []
    for step, high, low in schedule.descending():
        yield from Progress("fit", step, schedule.steps)
        cond = yield from Denoise.at(latents, high, conditioning)
        residual = Residual.of_step(latents, pivots[-2 - step], high, low, cond.eps, guidance_scale)
        fitted = Fitted(null, unfitted)
        if residual is not None:
            fitted = yield from fit(residual, null, step)
        null, uncond = fitted.null, fitted.uncond
        if guidance_scale == 1:
            uncond = cond  # it cancels out
        elif uncond is None:
            uncond = yield from Denoise.at(latents, high, null)
        latents, _ = guided_step(uncond, cond, guidance_scale, low)
        embeddings.append(null.hidden_states)
        if keep_pooled and null.pooled is not None:
            pooled.append(null.pooled)
        losses.append(fitted.losses)
    stored = {"null_embeddings": torch.stack(embeddings, dim=1)}
    if pooled:
        stored["null_pooled"] = torch.stack(pooled, dim=1)
    return Inverted(
        noise=pivots[-1],
        stored=stored,
        diagnostics={"losses": torch.stack(losses, dim=1)},
    )
