"""Null-text inversion (Mokady et al. 2022, arXiv:2211.09794, Algorithm 1), one image, plainly.

It follows what the authors' notebook ran where the paper leaves it open: the learning rate's decay,
the early stop's thresholds, Adam's fresh state at every timestep. It is also the timing baseline,
so it does nothing needless: the weights are frozen, eps_c is asked once per timestep, and the
guided step is one batch of two rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.attention import explicit_copy
from baselines.schedule import Schedule, ddim_step, predict_eps


@dataclass(frozen=True)
class NullTextInversion:
    """`pivots`: steps + 1 latents `[1, C, h, w]`, clean first, noisiest last (z*_0 .. z*_T).

    `nulls`: one `[1, L, D]` per step, noisiest step first, as sampling uses them. `losses`: per
    step, the loss before each update that was made. `latents`: zbar_0, the reconstruction.
    """

    pivots: list[Tensor]
    nulls: list[Tensor]
    losses: list[list[float]]
    latents: Tensor


@contextmanager
def frozen(unet: torch.nn.Module) -> Iterator[None]:
    """No gradient for the weights, meanwhile: only the embedding is fitted."""
    wanted = [p.requires_grad for p in unet.parameters()]
    unet.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(unet.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


def guided(eps_u: Tensor, eps_c: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance: `eps_u + w (eps_c - eps_u)`."""
    return eps_u + guidance_scale * (eps_c - eps_u)


@torch.no_grad()
def ddim_inversion(
    unet: torch.nn.Module, schedule: Schedule, latents: Tensor, cond: Tensor
) -> list[Tensor]:
    """DDIM run backwards at w = 1: clean `[1, C, h, w]` -> steps + 1 pivots, clean first.

    At z_low the network is asked with the destination's timestep.
    """
    pivots = [latents]
    for i in reversed(range(schedule.steps)):
        eps = predict_eps(unet, schedule, i, latents, cond)
        latents = ddim_step(latents, eps, schedule.alpha_bar_prev[i], schedule.alpha_bar[i])
        pivots.append(latents)
    return pivots


@torch.no_grad()
def guided_step(
    unet: torch.nn.Module,
    schedule: Schedule,
    step: int,
    latents: Tensor,
    null: Tensor,
    cond: Tensor,
    guidance_scale: float,
) -> Tensor:
    """One DDIM step down with guidance, `[1, C, h, w]`, from a batch of two rows: null, prompt."""
    eps = predict_eps(
        unet, schedule, step, torch.cat([latents, latents]), torch.cat([null, cond])
    )  # [2, C, h, w]
    eps_w = guided(eps[:1], eps[1:], guidance_scale)
    return ddim_step(latents, eps_w, schedule.alpha_bar[step], schedule.alpha_bar_prev[step])


def fit_null(
    unet: torch.nn.Module,
    schedule: Schedule,
    step: int,
    latents: Tensor,
    pivot: Tensor,
    null: Tensor,
    cond: Tensor,
    *,
    inner_steps: int,
    guidance_scale: float,
    early_stop_epsilon: float,
) -> tuple[Tensor, list[float]]:
    """The inner loop at one timestep: `min_null |z*_{t-1} - DDIM(zbar_t, eps_w(null))|^2` (Eq. 3).

    The update is applied first; then the loop stops if the loss before it was small enough.
    """
    null = null.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([null], lr=1e-2 * (1.0 - step / 100.0))
    high, low = schedule.alpha_bar[step], schedule.alpha_bar_prev[step]
    with torch.no_grad():
        eps_c = predict_eps(unet, schedule, step, latents, cond)

    losses: list[float] = []
    for _ in range(inner_steps):
        eps_u = predict_eps(unet, schedule, step, latents, null)
        reached = ddim_step(latents, guided(eps_u, eps_c, guidance_scale), high, low)
        loss = F.mse_loss(reached, pivot)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < early_stop_epsilon + step * 2e-5:
            break
    return null.detach(), losses


def null_text_inversion(
    unet: torch.nn.Module,
    schedule: Schedule,
    latents: Tensor,
    cond: Tensor,
    null: Tensor,
    *,
    inner_steps: int = 10,
    guidance_scale: float = 7.5,
    early_stop_epsilon: float = 1e-5,
    explicit_maps: bool = False,
) -> NullTextInversion:
    """Invert clean `latents [1, C, h, w]` with `cond [1, L, D]`, starting from `null [1, L, D]`.

    All in the dtype of the arguments, which must be the network's. `explicit_maps` runs on a copy
    of the UNet that makes every attention map; to time that, copy it yourself beforehand
    (`attention.explicit_copy`), so that the copying is not timed.
    """
    if latents.shape[0] != 1 or cond.shape[0] != 1 or null.shape[0] != 1:
        raise ValueError("the baseline inverts one image at a time: give batches of one")
    if explicit_maps:
        unet = explicit_copy(unet)
    with frozen(unet):
        pivots = ddim_inversion(unet, schedule, latents, cond)
        current = pivots[-1]
        nulls: list[Tensor] = []
        losses: list[list[float]] = []
        for i in range(schedule.steps):
            null, fit_losses = fit_null(
                unet,
                schedule,
                i,
                current,
                pivots[schedule.steps - i - 1],
                null,
                cond,
                inner_steps=inner_steps,
                guidance_scale=guidance_scale,
                early_stop_epsilon=early_stop_epsilon,
            )
            nulls.append(null)
            losses.append(fit_losses)
            current = guided_step(unet, schedule, i, current, null, cond, guidance_scale)
    return NullTextInversion(pivots, nulls, losses, current)


def reconstruct(
    unet: torch.nn.Module,
    schedule: Schedule,
    noise: Tensor,
    cond: Tensor,
    nulls: list[Tensor] | Tensor,
    guidance_scale: float = 7.5,
) -> Tensor:
    """Sample `noise [1, C, h, w]` down with one null embedding `[1, L, D]`, or a list of them."""
    latents = noise
    for i in range(schedule.steps):
        null = nulls[i] if isinstance(nulls, list) else nulls
        latents = guided_step(unet, schedule, i, latents, null, cond, guidance_scale)
    return latents
