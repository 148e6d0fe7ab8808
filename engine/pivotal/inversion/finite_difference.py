"""Guidance-corrected inversion by finite differences: DDIM up under guidance, each late step
corrected until the step down comes back.

bloc97, "InverseCrossAttention" and its discussion (github.com/bloc97/CrossAttentionControl, 2022).
No paper. The gradient through the network, which its author calls too slow, is an option: the
reference for what the finite differences and their odd timestep buy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Denoise, Progress
from pivotal.sampling.ddim import sample
from pivotal.sampling.grids import levels_at
from pivotal.sampling.guidance import both_noises, guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, NoiseLevels, Schedule

from .base import Inverted
from .checks import require_above, require_finite_sigma, require_one_of, require_within
from .pullback import guided_parts, pulled_back

logger = logging.getLogger(__name__)

_AUTHORS_ELEMENTS = 4 * 64 * 64  # his thresholds are sums over so many; ours are per element


@dataclass(frozen=True)
class FiniteDifferenceOptions:
    """guidance_scale: up and down; the author's range is up to 5.5 for generated images and up to
    4.5 for most real ones.

    Steps after `refine_skip` of all are corrected, up to `refine_iterations` times, each by
    `refine_strength` of the error; with 0 every step is, the first too, which the author's
    comparison would leave out. damping: the strength falls by a tenth where the error fell by
    less than `smallest_fall` ("intended"), or at every iteration, as the published code does by
    updating its minimum first ("published"). A row stops when its error, a mean of absolute
    values, is under `tolerance`.

    earlier: the unconditional pass is asked at `t - earlier (t1 - t)`, the conditional one at t, in
    place of t1, which the step down is about; without it the result can diverge. gradient:
    "finite"; "frozen", which asks both passes at t1, as the step down will, and so leaves only the
    network's part of the gradient out (ours; `earlier` then means nothing); or "exact", which asks
    there too and takes the gradient through the network.
    """

    guidance_scale: float = 3.0
    refine_iterations: int = 3
    refine_strength: float = 0.9
    refine_skip: float = 0.7
    damping: Literal["intended", "published"] = "intended"
    smallest_fall: float = 1 / _AUTHORS_ELEMENTS
    tolerance: float = 5 / _AUTHORS_ELEMENTS
    earlier: float = 0.25
    gradient: Literal["finite", "frozen", "exact"] = "finite"

    def __post_init__(self) -> None:
        require_within("refine_iterations", self.refine_iterations, 0)
        require_above("refine_strength", self.refine_strength, 0)
        require_within("refine_skip", self.refine_skip, 0, 1)
        require_one_of("damping", self.damping, ("intended", "published"))
        require_within("tolerance", self.tolerance, 0)
        require_one_of("gradient", self.gradient, ("finite", "frozen", "exact"))


def grid(schedule: Schedule, options: FiniteDifferenceOptions | None = None) -> Schedule:
    """The author's grid, whatever the options: `linspace(0, 999, steps + 1)`, alpha_bar between
    integers log-sigma linear. Raises ValueError where the last one has zero SNR.
    """
    levels = NoiseLevels(schedule.config)
    last = schedule.config.num_train_timesteps - 1
    timesteps = [last * index / schedule.steps for index in range(schedule.steps + 1)]
    made = Schedule(tuple(levels_at(levels, timesteps)), schedule.config)
    require_finite_sigma(made, "finite-difference inversion")
    return made


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: FiniteDifferenceOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise; two UNet rows each step and image, and two for each
    correction (exact: two more, forward and backward).

    Diagnostics: `errors` [B, steps, iterations], mean absolute, clean to noisy, NaN where nothing
    was evaluated; infinite where it wasn't finite; `diverged` [B] bool, where corrections made a
    step's error infinite or more than twice what it was (the lowest was kept).
    """
    found = []
    levels = grid(schedule)
    for step, (low, high) in enumerate(levels.ascending()):
        yield from Progress("invert", step, schedule.steps)
        noise = yield from guided_noise(latents, low, conditioning, null, options.guidance_scale)
        a, b = ddim_coefficients(low, high)
        proposal = a * latents + b * noise.eps
        errors = latents.new_full((latents.shape[0], options.refine_iterations), torch.nan)
        if options.refine_skip == 0 or step > schedule.steps * options.refine_skip:
            proposal, errors = yield from refine(
                latents, proposal, low, high, conditioning, null, options
            )
        latents = proposal
        found.append(errors)
    errors = torch.stack(found, dim=1)
    diverged = _diverged(errors)
    if bool(diverged.any()):
        logger.warning(
            "finite differences diverged for %d of %d images; use a lower guidance or "
            "refine_strength", int(diverged.sum()), len(diverged),
        )  # fmt: skip
    return Inverted(noise=latents, diagnostics={"errors": errors, "diverged": diverged})


def refine(
    origin: Tensor,
    proposal: Tensor,
    low: NoiseLevel,
    high: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: FiniteDifferenceOptions,
) -> Algorithm[tuple[Tensor, Tensor]]:
    """Move a proposal [B, C, h, w] at `high` until its step down is `origin` at `low`.

    Returns the latents of the lowest error that was evaluated, and all errors [B, iterations]. Each
    row stops for itself.
    """
    a, b = ddim_coefficients(high, low)
    rows = origin.shape[0]
    best, moved = proposal, proposal
    errors = origin.new_full((rows, options.refine_iterations), torch.nan)
    lowest = origin.new_full((rows,), torch.inf)
    strength = origin.new_full((rows,), options.refine_strength)
    active = torch.arange(rows, device=origin.device)
    for iteration in range(options.refine_iterations):
        z, cond, uncond = moved[active], conditioning.select(active), null.select(active)
        eps, pulled_at = yield from _eps(z, low, high, cond, uncond, options)
        off = origin[active] - (a * z + b * eps)
        error = off.abs().mean(dim=(1, 2, 3))
        # NaN means that nothing was evaluated.
        errors[active, iteration] = error.nan_to_num(torch.inf, posinf=torch.inf)
        before = lowest[active]
        better = error < before
        best = best.index_copy(0, active, torch.where(better[:, None, None, None], z, best[active]))
        lowest = lowest.index_copy(0, active, torch.where(better, error, before))
        if iteration + 1 == options.refine_iterations:
            break  # a move would not be evaluated
        damped = before - error < options.smallest_fall
        if options.damping == "published":
            damped = torch.ones_like(damped)
        strength = strength.index_copy(
            0, active, torch.where(damped, 0.9 * strength[active], strength[active])
        )
        going_on = lowest[active] >= options.tolerance
        if options.gradient == "exact":
            # The descent direction of |off|^2 / 2; the network's part is what the others leave out.
            pulled = yield from pulled_back(off, z, high, pulled_at)
            off = a * off + b * pulled
        z = z + strength[active][:, None, None, None] * off
        moved = moved.index_copy(0, active, z)
        active = active[going_on]
        if len(active) == 0:
            break
    return best, errors


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: FiniteDifferenceOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back by DDIM on the author's grid. Returns latents [R, C, h, w]."""
    return (
        yield from sample(
            grid(schedule),
            inverted.noise,
            conditioning,
            lambda step: null,
            guidance_scale,
            control,
        )
    )


def _eps(
    latents: Tensor,
    low: NoiseLevel,
    high: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: FiniteDifferenceOptions,
) -> Algorithm[tuple[Tensor, list[tuple[float, Conditioning, Tensor]]]]:
    """The guided eps of the step down from `high`, and its parts. "finite": the unconditional pass
    a little before `low`, the conditional one at it; "frozen" and "exact": both at `high`.
    """
    w = options.guidance_scale
    if options.gradient != "finite":
        uncond, cond = yield from both_noises(latents, high, conditioning, null)
        eps_uncond, eps_cond = uncond.eps, cond.eps
    else:
        rows = latents.shape[0]
        earlier = max(low.timestep - options.earlier * (high.timestep - low.timestep), 0.0)
        timesteps = torch.tensor([earlier, low.timestep], device=latents.device)
        both = latents.new_full((2 * rows,), low.alpha_bar, dtype=torch.float64)
        noise = yield from Denoise(
            torch.cat([latents, latents]),
            timesteps.repeat_interleave(rows),
            both,
            Conditioning.cat([null, conditioning]),
        )
        eps_uncond, eps_cond = noise.eps[:rows], noise.eps[rows:]
    parts = guided_parts(w, conditioning, null, eps_cond, eps_uncond)
    return eps_uncond + w * (eps_cond - eps_uncond), parts


def _diverged(errors: Tensor) -> Tensor:
    """Rows [B] in which an error at some step is more than twice the step's first, or infinite."""
    if errors.shape[-1] == 0:
        return torch.zeros(errors.shape[0], dtype=torch.bool, device=errors.device)
    first = errors[..., :1]
    return ((errors > 2 * first) | errors.isinf()).flatten(1).any(dim=1)
