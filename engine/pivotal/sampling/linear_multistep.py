"""Linear multistep sampling: Adams-Bashforth on eps in sigma space, exact for its uneven grid.

Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models" (arXiv:2202.09778), section 3, and
k-diffusion's LMS, whose coefficients are these integrals by quadrature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.schedule import Schedule

from .euler import from_sigma_space, require_finite_sigma, to_sigma_space
from .loss_guidance import LossGuidance, predicted


def sample(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Callable[[int], Conditioning],
    guidance_scale: float,
    control: Control,
    *,
    order: int = 4,
    loss: LossGuidance | None = None,
) -> Algorithm[Tensor]:
    """Latents [R, C, h, w] at the noisiest level to the clean one; order 1 is Euler.

    The first steps have lower orders, as many predictions as there are. Raises ValueError for an
    order below 1 and at zero terminal SNR.
    """
    if order < 1:
        raise ValueError(f"order={order}; 1 or more is possible")
    require_finite_sigma(schedule)
    past: list[tuple[float, Tensor]] = []  # (sigma, eps), newest last
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        latents, noise = yield from predicted(
            latents, step, high, conditioning, null(step), guidance_scale, control, loss
        )
        past = [*(past[-(order - 1) :] if order > 1 else []), (high.sigma, noise.eps)]
        weights = multistep_weights([sigma for sigma, _ in past], high.sigma, low.sigma)
        x = to_sigma_space(latents, high)
        for weight, (_, eps) in zip(weights, past, strict=True):
            x = x + weight * eps
        latents = control.after_step(step, from_sigma_space(x, low), noise.word_maps)
    return latents


def multistep_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """For each node, the integral from start to end of its Lagrange polynomial over all nodes.

    Nodes that coincide (a step that stands still) are counted once, the newest.
    """
    kept = [place for place, node in enumerate(nodes) if node not in nodes[place + 1 :]]
    weights = [0.0] * len(nodes)
    for place in kept:
        others = [nodes[other] for other in kept if other != place]
        # About `start`, so that the powers stay small.
        polynomial = np.poly1d([1.0])
        for other in others:
            polynomial *= np.poly1d([1.0, start - other]) / (nodes[place] - other)
        integral = polynomial.integ()
        weights[place] = float(integral(end - start) - integral(0.0))
    return weights
