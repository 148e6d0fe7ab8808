"""Guided Newton-Raphson inversion: the root of each step's implicit equation, near its likeliest.

Samuel et al., "Lightning-Fast Image Inversion and Editing for Text-to-Image Diffusion Models"
(arXiv:2312.12540). The residual's l1 norm plus a prior is a scalar function of the latents, and
Newton-Raphson on a scalar needs its gradient alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning
from pivotal.sampling.guidance import both_noises, guided_noise
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted
from .checks import require_above, require_within
from .implicit import climb
from .pullback import guided_parts, pulled_back


@dataclass(frozen=True)
class NewtonOptions:
    """iterations: evaluations of each step's equation; 1 is DDIM inversion.

    prior_weight: of the step's own noising distribution, N(sqrt(ab_high / ab_low) z_low, 1 -
    ab_high / ab_low), against the residual; the paper's guidance, 0 for none. smallest_gradient:
    elements of the gradient nearer to 0 are taken as this large, or the update, which divides by
    them, explodes. through_network: with the network's part of the gradient, which the authors'
    code leaves out. guidance_scale: of the step that is inverted, 1 whatever the replay's unless
    given; only at its own does the replay solve the same equation.
    """

    iterations: int = 3
    prior_weight: float = 0.1
    smallest_gradient: float = 0.5
    through_network: bool = False
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        require_within("iterations", self.iterations, 1)
        require_within("prior_weight", self.prior_weight, 0)
        require_above("smallest_gradient", self.smallest_gradient, 0)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: NewtonOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise; `iterations` UNet rows each step and image, and
    through the network as many less one more, forward and backward.

    Diagnostics: `residuals` [B, steps, iterations], root mean squares, clean to noisy.
    """
    solved = partial(solve, conditioning=conditioning, null=null, options=options)
    return (yield from climb(schedule, latents, solved, "Newton-Raphson inversion"))


def solve(
    start: Tensor,
    low: NoiseLevel,
    high: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    options: NewtonOptions,
) -> Algorithm[tuple[Tensor, Tensor]]:
    """Newton-Raphson on `F(z) = |z - f(z)|_1 + prior`, `f(z) = a start + b eps(z)`, from z = start.

    Each element moves by F / D over its own derivative, D elements in all (the paper's Eq. 10).
    Returns f of the iterate with the lowest F, and the residuals [B, iterations].
    """
    a, b = ddim_coefficients(low, high)
    w, weight = options.guidance_scale, options.prior_weight
    variance = max(1 - high.alpha_bar / low.alpha_bar, torch.finfo(torch.float32).tiny)
    latents, best, residuals = start, start, []
    lowest = start.new_full((start.shape[0],), torch.inf)
    for iteration in range(options.iterations):
        eps_uncond = None
        if w == 1:
            cond = yield from guided_noise(latents, high, conditioning, null, w)
        else:
            uncond, cond = yield from both_noises(latents, high, conditioning, null)
            eps_uncond = uncond.eps
        parts = guided_parts(w, conditioning, null, cond.eps, eps_uncond)
        mapped = a * start + b * sum(share * eps for share, _, eps in parts)
        residual, strayed = latents - mapped, latents - a * start
        prior = weight * strayed.square() / (2 * variance)
        value = (residual.abs() + prior).mean(dim=(1, 2, 3))  # F / D
        residuals.append(residual.square().mean(dim=(1, 2, 3)).sqrt())
        better = ~(value >= lowest)  # the first one always; what isn't a number is not hidden
        best = torch.where(better[:, None, None, None], mapped, best)
        lowest = torch.where(better, value, lowest)
        if iteration + 1 == options.iterations:
            break
        gradient = residual.sign() + weight * strayed / variance
        if options.through_network:
            pulled = yield from pulled_back(residual.sign(), latents, high, parts)
            gradient = gradient - b * pulled
        floor = options.smallest_gradient
        safe = torch.where(gradient < 0, gradient.clamp(max=-floor), gradient.clamp(min=floor))
        latents = latents - value[:, None, None, None] / safe
    return best, torch.stack(residuals, dim=1)


replay = ddim.replay
