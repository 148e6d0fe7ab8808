"""The network's transposed Jacobian on a direction, said with the query that there is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pivotal.query import Algorithm, Conditioning, NoiseGradient, every_row
from pivotal.schedule import NoiseLevel

Part = tuple[float, Conditioning, Tensor]
"""A share of the guided prediction: its weight, its conditioning, its eps [B, C, h, w]."""


def guided_parts(
    guidance_scale: float,
    conditioning: Conditioning,
    null: Conditioning,
    eps_cond: Tensor,
    eps_uncond: Tensor | None,
) -> list[Part]:
    """eps_w as a weighted sum; the prompt alone at guidance 1."""
    if eps_uncond is None:
        return [(1.0, conditioning, eps_cond)]
    return [(1 - guidance_scale, null, eps_uncond), (guidance_scale, conditioning, eps_cond)]


def pulled_back(
    direction: Tensor, latents: Tensor, level: NoiseLevel, parts: Sequence[Part]
) -> Algorithm[Tensor]:
    """The transposed Jacobian of sum(weight * eps) on a direction [B, C, h, w].

    `mean((eps + offset)^2)` with `offset = direction - eps` has `2 / D` times it as its gradient, D
    elements a row.
    """
    rows, elements = latents.shape[0], latents[0].numel()
    repeated = torch.cat([latents] * len(parts))
    timesteps, alpha_bars = every_row(repeated, level)
    answer = yield from NoiseGradient(
        repeated,
        timesteps,
        alpha_bars,
        Conditioning.cat([conditioning for _, conditioning, _ in parts]),
        scale=latents.new_ones(len(parts) * rows),
        offset=torch.cat([direction - eps for _, _, eps in parts]),
        wrt="latents",
    )
    pulled = elements / 2 * answer.gradient.view(len(parts), *latents.shape)
    shares = latents.new_tensor([share for share, _, _ in parts])
    return (shares[:, None, None, None, None] * pulled).sum(dim=0)
