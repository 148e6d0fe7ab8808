"""Null-text inversion by line search: one gradient and one probe each iteration, no learning rate.

The loss of null-text inversion (arXiv:2211.09794, Eq. 3) is exactly quadratic in eps_u, and eps_u
is nearly linear in the embedding over one step, so the best step along a direction has a closed
form. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning, Noise
from pivotal.sampling.steps import eps_and_x0
from pivotal.schedule import Schedule

from . import null_text
from .base import Inverted
from .checks import require_above, require_one_of, require_within
from .null_text_directions import DIRECTIONS, Past, in_span, unit
from .null_text_fit import Fitted, Residual, along_pivots

HALVINGS = 3
"""At most, of a timestep's only step. Without any, rows whose steps are too long stay where they
are from then on: 9.0 dB in latents at `again_from=0.5` instead of 28.0, scene 10 of `shapes`."""


@dataclass(frozen=True)
class LineSearchOptions:
    """guidance_scale: the guidance the embeddings are fitted for. iterations: the most searches
    each timestep. enough: mean square of latents; a row whose last step is to leave less searches
    no further at that timestep, so the residual left chooses how often. again_from: of the steps,
    as a share; timesteps before it are searched once, for what they leave over the fits after them
    mostly take up: at 0.5 edits succeed as often, with 1.2 dB less in latents (64 scenes).

    direction: the gradient's; "conjugate" ones; "lbfgs"; or the best in the "subspace" of all that
    was probed at this timestep, Gauss-Newton's step in it. They differ from the second search on.
    probe: of the embedding, root mean square, by which the slope of eps_u is measured. longest: of
    a step, likewise.
    """

    guidance_scale: float = 7.5
    iterations: int = 2
    direction: Literal["gradient", "conjugate", "lbfgs", "subspace"] = "conjugate"
    probe: float = 0.05
    longest: float = 1.0
    enough: float = 0.0
    again_from: float = 0.0

    def __post_init__(self) -> None:
        require_within("iterations", self.iterations, 0)
        require_one_of("direction", self.direction, tuple(DIRECTIONS))
        require_above("probe", self.probe, 0)
        require_above("longest", self.longest, 0)
        require_within("enough", self.enough, 0)
        require_within("again_from", self.again_from, 0, 1)

    def searches(self, step: int, steps: int) -> int:
        """The most of a timestep's; step 0 is the noisiest."""
        return self.iterations if step >= self.again_from * steps else min(self.iterations, 1)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: LineSearchOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise and `null_embeddings` [B, steps, L, D] float32.

    Costs at most `steps * (1 + 1 + 2 iterations + 1)` UNet rows an image, and `steps * iterations`
    backward; where a timestep is searched once, HALVINGS rows more. Diagnostics: `losses`
    [B, steps, iterations] before each search, NaN where a row had stopped.
    """

    def by_search(residual: Residual, null: Conditioning, step: int) -> Algorithm[Fitted]:
        count, device = options.searches(step, schedule.steps), residual.latents.device
        most = torch.full((residual.rows,), count, device=device)
        return search_rows(residual, null, options, most)

    return (
        yield from along_pivots(
            schedule, latents, conditioning, null, options.guidance_scale, by_search,
            options.iterations,
        )
    )  # fmt: skip


def search_rows(
    residual: Residual,
    null: Conditioning,
    options: LineSearchOptions,
    most: Tensor | None = None,
) -> Algorithm[Fitted]:
    """Minimise a residual's mean square over the embedding, for rows at any timesteps, by at most
    so many searches each, int64 [B]: the options' if None.

    Each search takes a direction `d` of unit root mean square, measures how the residual `r` moves
    against it, `m = slope (eps_u(null - h d) - eps_u(null)) / h`, and goes to the minimum of
    `|r + k m|^2`: `k = -<r, m> / <m, m>`, clamped to [0, longest].

    Safeguards: a step that did not lower the loss is halved instead of a search, and a row's only
    step HALVINGS times at most; a row without a usable direction or probe stops, and no row ends
    where its loss is above the lowest that it saw.
    """
    embedding = null.hidden_states
    losses = residual.latents.new_full((residual.rows, options.iterations), torch.nan)
    best = _Best.none(embedding, residual)
    active = torch.arange(residual.rows, device=embedding.device)
    past = Past()
    for iteration in range(options.iterations):
        rows = residual.select(active)
        point = embedding[active]
        here = replace(null.select(active), hidden_states=point)
        answer = yield from rows.gradient(here)
        losses[active, iteration] = answer.loss.to(losses.dtype)
        better = answer.loss < best.loss[active]  # not where it is NaN
        known = best.loss[active].isfinite()
        halved = (point + best.embedding[active]) / 2
        best = best.where(active[better], point[better], answer.loss[better], answer.eps[better])

        direction = DIRECTIONS[options.direction](answer.gradient, point, past)
        along = unit(direction)
        usable = better & (answer.loss >= options.enough) & (along != 0).flatten(1).any(dim=1)
        searches = usable.nonzero().flatten()
        left = rows.at(answer.eps).flatten(1).double()
        move = torch.zeros_like(left)
        if len(searches):
            probed = here.select(searches)
            probed = replace(
                probed, hidden_states=probed.hidden_states - options.probe * along[searches]
            )
            ahead = yield from rows.select(searches).noise(probed)
            change = rows.select(searches).moved_by(ahead.eps - answer.eps[searches])
            change = change.flatten(1).double() / options.probe
            sound = change.isfinite().all(dim=1, keepdim=True)
            move[searches] = torch.where(sound, change, 0.0)
        past = past.and_then(point, answer.gradient, direction, move)
        step, gone = _step(left, past, options)
        searched = (move != 0).any(dim=1)
        stays = torch.where((better | ~known)[:, None, None], point, halved)
        moved = torch.where(searched[:, None, None], point + step, stays)
        embedding = embedding.index_copy(0, active, moved)

        wanted = (left + gone).square().mean(dim=1) >= options.enough
        if most is not None:
            wanted &= iteration + 1 < most[active]
        going_on = torch.where(better, searched & wanted, known).nonzero().flatten()
        active, past = active[going_on], past.select(going_on)
        if len(active) == 0:
            break
    found = replace(null, hidden_states=embedding)
    uncond = yield from residual.noise(found)
    counts = losses.new_full((residual.rows,), options.iterations) if most is None else most
    return (yield from best.or_shorter(Fitted(found, losses, uncond), residual, counts == 1))


def _step(residual: Tensor, past: Past, options: LineSearchOptions) -> tuple[Tensor, Tensor]:
    """From residuals [B, N] float64, and the last search or all: what to add to the embedding
    [B, L, D], and what that adds to the residual, by the probes.
    """
    first = 0 if options.direction == "subspace" else -1
    moves = torch.stack(past.moves[first:], dim=1)  # [B, K, N]
    along = torch.stack([unit(each) for each in past.directions[first:]], dim=1)  # [B, K, L, D]
    lengths = in_span(residual, moves)
    if options.direction != "subspace":
        lengths = lengths.clamp(min=0)  # never up the gradient
    step = -(lengths.to(along.dtype)[:, :, None, None] * along).sum(dim=1)
    size = step.square().mean(dim=(1, 2)).sqrt()
    share = (options.longest / size.clamp(min=options.longest)).to(step.dtype)
    gone = (lengths[:, :, None] * moves).sum(dim=1)
    return share[:, None, None] * step, share.double()[:, None] * gone


@dataclass(frozen=True)
class _Best:
    """Where each row's loss was lowest: embedding [B, L, D], loss [B], eps_u [B, C, h, w]."""

    embedding: Tensor
    loss: Tensor
    eps: Tensor

    @staticmethod
    def none(embedding: Tensor, residual: Residual) -> _Best:
        latents = residual.latents
        endless = latents.new_full((residual.rows,), torch.inf)
        return _Best(embedding, endless, torch.zeros_like(latents))

    def where(self, rows: Tensor, embedding: Tensor, loss: Tensor, eps: Tensor) -> _Best:
        """These rows replaced."""
        return _Best(
            self.embedding.index_copy(0, rows, embedding),
            self.loss.index_copy(0, rows, loss.to(self.loss.dtype)),
            self.eps.index_copy(0, rows, eps.to(self.eps.dtype)),
        )

    def missed(self, embedding: Tensor, eps: Tensor, residual: Residual) -> Tensor:
        """Rows, int64 [R], whose last step led away from here without lowering the loss."""
        lower = residual.loss(eps) <= self.loss
        moved = (embedding != self.embedding).flatten(1).any(dim=1)
        return (~lower & moved & self.loss.isfinite()).nonzero().flatten()

    def or_shorter(self, fitted: Fitted, residual: Residual, once: Tensor) -> Algorithm[Fitted]:
        """What was fitted; a last step that did not lower the loss is undone, and in rows that were
        searched once, bool [B], halved before, HALVINGS times at most.
        """
        assert fitted.uncond is not None
        null, uncond = fitted.null, fitted.uncond
        missed = self.missed(null.hidden_states, uncond.eps, residual)
        for _ in range(HALVINGS):
            rows = missed[once[missed]]
            if len(rows) == 0:
                break
            shorter = (null.hidden_states[rows] + self.embedding[rows]) / 2
            answer = yield from residual.select(rows).noise(
                replace(null.select(rows), hidden_states=shorter)
            )
            null, uncond = _with(null, shorter, uncond, answer, rows)
            missed = self.missed(null.hidden_states, uncond.eps, residual)
        if len(missed):
            at = residual.select(missed)
            kept = Noise(*eps_and_x0(self.eps[missed], at.latents, at.alpha_bars, "epsilon"))
            null, uncond = _with(null, self.embedding[missed], uncond, kept, missed)
        return replace(fitted, null=null, uncond=uncond)


def _with(
    null: Conditioning, embedding: Tensor, uncond: Noise, answer: Noise, rows: Tensor
) -> tuple[Conditioning, Noise]:
    """Both with these rows replaced."""
    return (
        replace(null, hidden_states=null.hidden_states.index_copy(0, rows, embedding)),
        Noise(uncond.eps.index_copy(0, rows, answer.eps), uncond.x0.index_copy(0, rows, answer.x0)),
    )


replay = null_text.replay
