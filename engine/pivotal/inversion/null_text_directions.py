"""Directions to search along, from the gradients of one timestep's fit. Free functions on rows.

Each is given the gradient `g` [B, L, D] at the point [B, L, D] where the search stands, and what
earlier iterations left; it returns a direction to go against, [B, L, D]. Nocedal & Wright 2006,
"Numerical Optimization", chapters 5, 7 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """Iterations of one timestep, oldest first; rows may differ in what they did, not in how often.

    points, gradients, directions: [B, L, D] each. moves: of the residual along unit directions,
    [B, N] float64, 0 where an iteration did not search.
    """

    points: tuple[Tensor, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    directions: tuple[Tensor, ...] = ()
    moves: tuple[Tensor, ...] = ()

    def and_then(self, point: Tensor, gradient: Tensor, direction: Tensor, move: Tensor) -> Past:
        return Past(
            (*self.points, point),
            (*self.gradients, gradient),
            (*self.directions, direction),
            (*self.moves, move),
        )

    def select(self, rows: Tensor) -> Past:
        """Some rows' own, int64 [R]."""
        return Past(
            *(
                tuple(tensor[rows] for tensor in kept)
                for kept in (self.points, self.gradients, self.directions, self.moves)
            )
        )


Direction = Callable[[Tensor, Tensor, Past], Tensor]


def steepest(gradient: Tensor, point: Tensor, past: Past) -> Tensor:
    """The gradient itself."""
    return gradient


def conjugate(gradient: Tensor, point: Tensor, past: Past) -> Tensor:
    """Polak and Ribiere's, begun again where its factor is negative (Eq. 5.44 and 5.45): CGLS,
    where eps_u is linear in the embedding.
    """
    if not past.gradients:
        return gradient
    before = past.gradients[-1]
    square = _dot(before, before)
    factor = _dot(gradient, gradient - before) / torch.where(square == 0, 1.0, square)
    return gradient + factor.clamp(min=0) * past.directions[-1]


def limited_memory(gradient: Tensor, point: Tensor, past: Past) -> Tensor:
    """L-BFGS, by two loops over all earlier iterations (Algorithm 7.4); pairs without positive
    curvature are left out, and a direction that would climb is the gradient's.
    """
    points, gradients = (*past.points, point), (*past.gradients, gradient)
    pairs = []
    for older, newer in zip(range(len(points) - 1), range(1, len(points)), strict=True):
        step, change = points[newer] - points[older], gradients[newer] - gradients[older]
        curvature = _dot(step, change)
        use = curvature > 0
        inverse = torch.where(use, 1 / torch.where(use, curvature, 1.0), 0.0)
        pairs.append((step, change, inverse))
    found, factors = gradient, []
    for step, change, inverse in reversed(pairs):
        factors.append(inverse * _dot(step, found))
        found = found - factors[-1] * change
    scale = torch.ones_like(_dot(found, found))
    for _, change, inverse in pairs:  # Eq. 7.20, of the latest pair that is used
        length = torch.where(inverse == 0, 1.0, inverse) * _dot(change, change)
        scale = torch.where(inverse == 0, scale, 1 / length)
    found = scale * found
    for (step, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        found = found + (factor - inverse * _dot(change, found)) * step
    return torch.where(_dot(found, gradient) > 0, found, gradient)


DIRECTIONS: Mapping[str, Direction] = {
    "gradient": steepest,
    "conjugate": conjugate,
    "lbfgs": limited_memory,
    "subspace": steepest,
}
"""By option. "subspace" probes along the gradient and then goes to the least squares' minimum in
the span of all that was probed at this timestep: Gauss-Newton's step (Eq. 10.23), restricted."""


def in_span(residual: Tensor, moves: Tensor) -> Tensor:
    """Gauss-Newton in a subspace: `k` [B, K] with the least `|residual + k moves|^2`.

    residual: [B, N] float64; moves: [B, K, N] float64. A trace of Levenberg's damping, 1e-6 of the
    mean square, keeps directions apart that are nearly one; where nothing moves k is 0.
    """
    normal = moves @ moves.mT  # [B, K, K]
    damping = 1e-6 * normal.diagonal(dim1=1, dim2=2).mean(dim=1)
    damping = torch.where(damping == 0, 1.0, damping)[:, None, None]
    eye = torch.eye(moves.shape[1], dtype=moves.dtype, device=moves.device)
    wanted = -(moves @ residual[:, :, None])
    found: Tensor = torch.linalg.solve(normal + damping * eye, wanted)
    return found[:, :, 0]


def unit(direction: Tensor) -> Tensor:
    """Of root mean square 1, row by row; 0 where it is 0 or not finite."""
    size = direction.square().mean(dim=(1, 2), keepdim=True).sqrt()
    usable = (size > 0) & size.isfinite()
    return torch.where(usable, direction, 0.0) / torch.where(usable, size, 1.0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Of rows [B, L, D], shaped to multiply them: [B, 1, 1]."""
    return (one * other).sum(dim=(1, 2), keepdim=True)
