"""Classifier-free guidance as a question: both predictions in one UNet batch, and a step."""

from __future__ import annotations

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.query import Algorithm, Conditioning, Denoise, Noise
from pivotal.schedule import NoiseLevel

from .steps import ddim_step, guide, guided_step


def guided_noise(
    latents: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    routes: AttentionRoutes | None = None,
    *,
    timestep: float | None = None,
) -> Algorithm[Noise]:
    """eps_w and x0_w for R rows of latents [R, C, h, w] at `level`.

    At guidance 1 the unconditional rows cancel out and are not asked for.
    """
    if cancels(guidance_scale, latents.shape[0], routes):
        return (yield from Denoise.at(latents, level, conditioning, routes, timestep=timestep))
    uncond, cond = yield from both_noises(
        latents, level, conditioning, null, routes, timestep=timestep
    )
    return guide(uncond, cond, guidance_scale)


def guided_ddim_step(
    latents: Tensor,
    high: NoiseLevel,
    low: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    routes: AttentionRoutes | None = None,
) -> Algorithm[tuple[Tensor, Noise]]:
    """`guided_noise` at `high` and DDIM to `low`, guidance and step as one op: latents [R, C, h, w]
    there, and the noise.
    """
    if cancels(guidance_scale, latents.shape[0], routes):
        noise = yield from Denoise.at(latents, high, conditioning, routes)
        return ddim_step(noise, low), noise
    uncond, cond = yield from both_noises(latents, high, conditioning, null, routes)
    return guided_step(uncond, cond, guidance_scale, low)


def cancels(guidance_scale: float, rows: int, routes: AttentionRoutes | None) -> bool:
    """Whether the unconditional prediction of so many rows has no part: at guidance 1, unless
    routes need its rows, as mutual self-attention's do.
    """
    return guidance_scale == 1 and (routes is None or routes.rows == rows)


def both_noises(
    latents: Tensor,
    level: NoiseLevel,
    conditioning: Conditioning,
    null: Conditioning,
    routes: AttentionRoutes | None = None,
    *,
    timestep: float | None = None,
) -> Algorithm[tuple[Noise, Noise]]:
    """The unconditional and the conditional prediction for R rows, asked as 2R, unconditional
    first.

    routes of R rows act on the conditional ones alone, as Prompt-to-Prompt's do; of 2R rows on all.
    """
    rows = latents.shape[0]
    if routes is not None and routes.rows == rows:
        routes = AttentionRoutes.cat([routes.identity_like(rows), routes])
    noise = yield from Denoise.at(
        torch.cat([latents, latents]),
        level,
        Conditioning.cat([null, conditioning]),
        routes,
        timestep=timestep,
    )
    return noise.part(0, rows), noise.part(rows, 2 * rows)
