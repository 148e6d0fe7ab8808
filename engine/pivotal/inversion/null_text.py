"""Null-text inversion: DDIM's trajectory as a pivot, and null embeddings fitted to stay on it under
guidance.

Mokady et al. 2022, "Null-text Inversion for Editing Real Images using Guided Diffusion Models"
(arXiv:2211.09794), Algorithm 1, with its authors' published defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Denoise, NoiseGradient, Progress, every_row
from pivotal.sampling.adam import AdamState, adam_step
from pivotal.sampling.ddim import sample
from pivotal.sampling.steps import ddim_coefficients, ddim_step, guide
from pivotal.schedule import NoiseLevel, Schedule

from . import ddim
from .base import Inverted


@dataclass(frozen=True)
class NullTextOptions:
    """guidance_scale: the guidance the embeddings are fitted for, and the edit's default.

    Step i counts from the noisiest, 0. learning_rate falls as `1 - i / 100`; beyond 50
    steps as `1 - i / (2 steps)`, so that it never reaches 0. A row stops when its loss before the
    last update was under `early_stop + i * early_stop_growth` (mean square of latents).
    """

    guidance_scale: float = 7.5
    inner_steps: int = 10
    learning_rate: float = 1e-2
    early_stop: float = 1e-5
    early_stop_growth: float = 2e-5

    def __post_init__(self) -> None:
        if self.inner_steps < 0:
            raise ValueError(f"inner_steps={self.inner_steps}; 0 or more are possible")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}; it must be above 0")


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: NullTextOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise and `null_embeddings` [B, steps, L, D] float32.

    null: the empty prompt's conditioning, B rows. Each image stops its own fits early. Costs at
    most `steps * (1 + 1 + inner) + steps` UNet rows an image, and `steps * inner` backward.
    """
    pivots = yield from ddim.trajectory(
        schedule, latents, conditioning, null, ddim.DDIMOptions(guidance_scale=1.0)
    )
    latents = pivots[-1]
    embeddings, losses = [], []
    for step, high, low in schedule.descending():
        yield from Progress("fit", step, schedule.steps)
        pivot = pivots[-2 - step]
        cond = yield from Denoise.at(latents, high, conditioning)
        null, fit_losses = yield from fit(
            latents, pivot, high, low, cond.eps, null, step, schedule.steps, options
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


def fit(
    latents: Tensor,
    pivot: Tensor,
    high: NoiseLevel,
    low: NoiseLevel,
    eps_cond: Tensor,
    null: Conditioning,
    step: int,
    steps: int,
    options: NullTextOptions,
) -> Algorithm[tuple[Conditioning, Tensor]]:
    """Minimise `mean((pivot - DDIM(latents, eps_w(null)))^2)` over the null embedding by Adam (Eq.
    3).

    The DDIM step is `a z + b eps_w`, so the residual is linear in eps_u: `scale * eps_u + offset`.
    Nothing is asked where that scale is 0 (at guidance 1, or a last step that does not move), nor
    at zero terminal SNR, where eps does not depend on the network. Returns the fitted conditioning
    and the losses [B, inner], NaN where a row had stopped.
    """
    embedding = null.hidden_states
    losses = embedding.new_full((latents.shape[0], options.inner_steps), torch.nan)
    if high.alpha_bar == 0:
        return null, losses
    a, b = ddim_coefficients(high, low)
    scale = -b * (1 - options.guidance_scale)
    if scale == 0:
        return null, losses
    offset = pivot - a * latents - b * options.guidance_scale * eps_cond
    learning_rate = options.learning_rate * (1 - step / max(100, 2 * steps))
    enough = options.early_stop + step * options.early_stop_growth

    active = torch.arange(latents.shape[0], device=latents.device)  # rows still being fitted
    state = AdamState.fresh(embedding)
    for inner in range(options.inner_steps):
        timesteps, alpha_bars = every_row(latents[active], high)
        answer = yield from NoiseGradient(
            latents[active],
            timesteps,
            alpha_bars,
            replace(null, hidden_states=embedding).select(active),
            scale=latents.new_full((len(active),), scale),
            offset=offset[active],
        )
        moved, state = adam_step(embedding[active], answer.gradient, state, learning_rate)
        embedding = embedding.index_copy(0, active, moved)
        losses[active, inner] = answer.loss.to(losses.dtype)
        going_on = (answer.loss >= enough).nonzero().flatten()
        active, state = active[going_on], state.select(going_on)
        if len(active) == 0:
            break
    return replace(null, hidden_states=embedding), losses


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: object = None,
) -> Algorithm[Tensor]:
    """Sample R rows back with the fitted embedding of each step. Returns latents [R, C, h, w].

    Source and targets share their image's embeddings. inverted, conditioning and null hold R rows
    each. options: of the inversion; what was fitted is stored, so none is needed.
    """
    embeddings = inverted.stored["null_embeddings"]

    def fitted(step: int) -> Conditioning:
        return replace(null, hidden_states=embeddings[:, step])

    return (
        yield from sample(schedule, inverted.noise, conditioning, fitted, guidance_scale, control)
    )
