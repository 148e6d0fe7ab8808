"""Null-text inversion by line search: one gradient and one probe each timestep, no learning rate.

The loss of null-text inversion (arXiv:2211.09794, Eq. 3) is exactly quadratic in eps_u, and eps_u
is nearly linear in the embedding over one step, so the best step along the gradient has a closed
form. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning, Denoise, NoiseGradient, Progress, every_row
from pivotal.sampling.steps import ddim_coefficients, ddim_step, guide
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim, null_text
from .base import Inverted
from .checks import require_above, require_within


@dataclass(frozen=True)
class LineSearchOptions:
    """guidance_scale: the guidance the embeddings are fitted for. iterations: line searches each
    timestep; one or two do what Adam's ten do. probe: of the embedding, root mean square, by which
    the slope of eps_u is measured. longest: of a step, likewise. A row stops when its loss is under
    `enough` (mean square of latents).
    """

    guidance_scale: float = 7.5
    iterations: int = 1
    probe: float = 0.05
    longest: float = 1.0
    enough: float = 0.0

    def __post_init__(self) -> None:
        require_within("iterations", self.iterations, 0)
        require_above("probe", self.probe, 0)
        require_above("longest", self.longest, 0)
        require_within("enough", self.enough, 0)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: LineSearchOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise and `null_embeddings` [B, steps, L, D] float32.

    Costs `steps * (1 + 1 + 2 iterations + 1)` UNet rows an image, and `steps * iterations`
    backward. Diagnostics: `losses` [B, steps, iterations] before each search, NaN where a row had
    stopped.
    """
    pivots = yield from ddim.trajectory(schedule, latents, conditioning, null, ddim.DDIMOptions())
    latents = pivots[-1]
    embeddings, losses = [], []
    for step, high, low in schedule.descending():
        yield from Progress("fit", step, schedule.steps)
        cond = yield from Denoise.at(latents, high, conditioning)
        null, fit_losses = yield from search(
            latents, pivots[-2 - step], high, low, cond.eps, null, options
        )
        uncond = cond  # at guidance 1 it cancels out
        if options.guidance_scale != 1:
            uncond = yield from Denoise.at(latents, high, null)
        latents = ddim_step(guide(uncond, cond, options.guidance_scale), low)
        embeddings.append(null.hidden_states)
        losses.append(fit_losses)
    return Inverted(
        noise=pivots[-1],
        stored={"null_embeddings": torch.stack(embeddings, dim=1)},
        diagnostics={"losses": torch.stack(losses, dim=1)},
    )


def search(
    latents: Tensor,
    pivot: Tensor,
    high: NoiseLevel,
    low: NoiseLevel,
    eps_cond: Tensor,
    null: Conditioning,
    options: LineSearchOptions,
) -> Algorithm[tuple[Conditioning, Tensor]]:
    """Line searches for one timestep: the conditioning found, and the losses [B, iterations]."""
    losses = latents.new_full((latents.shape[0], options.iterations), torch.nan)
    if high.alpha_bar == 0:
        return null, losses
    a, b = ddim_coefficients(high, low)
    slope = b * (1 - options.guidance_scale)  # of the step's end in eps_u
    if slope == 0:
        return null, losses
    short = a * latents + b * options.guidance_scale * eps_cond - pivot
    timesteps, alpha_bars = every_row(latents, high)
    scales = latents.new_full((latents.shape[0],), slope)
    null, losses = yield from search_rows(
        latents, timesteps, alpha_bars, null, scales, short, options
    )
    return null, losses


def search_rows(
    latents: Tensor,
    timesteps: Tensor,
    alpha_bars: Tensor,
    null: Conditioning,
    slopes: Tensor,
    short: Tensor,
    options: LineSearchOptions,
) -> Algorithm[tuple[Conditioning, Tensor]]:
    """Minimise `mean((slope eps_u(null) + short)^2)` over the embedding, for rows at any timesteps.

    latents, short: [B, C, h, w]; slopes, timesteps, alpha_bars: [B]. Each search takes the
    gradient's direction `d`, of unit root mean square, measures how the residual moves along it,
    `Jd`, and goes to the residual's minimum: `-<r, Jd> / <Jd, Jd>`, clamped to [0, longest].
    """
    embedding = null.hidden_states
    losses = latents.new_full((latents.shape[0], options.iterations), torch.nan)
    active = torch.arange(latents.shape[0], device=latents.device)
    for iteration in range(options.iterations):
        rows = active
        here = replace(null, hidden_states=embedding).select(rows)
        answer = yield from NoiseGradient(
            latents[rows],
            timesteps[rows],
            alpha_bars[rows],
            here,
            scale=slopes[rows],
            offset=short[rows],
        )
        losses[rows, iteration] = answer.loss.to(losses.dtype)
        size = answer.gradient.square().mean(dim=(1, 2), keepdim=True).sqrt()
        flat = size == 0
        direction = torch.where(flat, 0.0, answer.gradient / torch.where(flat, 1.0, size))
        probed = replace(here, hidden_states=embedding[rows] - options.probe * direction)
        ahead = yield from Denoise(latents[rows], timesteps[rows], alpha_bars[rows], probed)
        wide = slopes[rows][:, None, None, None]
        moves = (wide * (ahead.eps - answer.eps) / options.probe).flatten(1).double()
        residual = (wide * answer.eps + short[rows]).flatten(1).double()
        square = moves.square().sum(dim=1)
        best = -(residual * moves).sum(dim=1) / torch.where(square == 0, 1.0, square)
        length = best.clamp(0, options.longest).to(embedding.dtype)
        moved = embedding[rows] - length[:, None, None] * direction
        embedding = embedding.index_copy(0, rows, moved)
        active = rows[answer.loss >= options.enough]
        if len(active) == 0:
            break
    return replace(null, hidden_states=embedding), losses


replay = null_text.replay
