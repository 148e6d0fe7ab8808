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
from pivotal.query import Algorithm, Conditioning
from pivotal.sampling.adam import AdamState, adam_step
from pivotal.sampling.ddim import sample
from pivotal.schedule import Schedule

from .base import Inverted
from .loss_reading import LossReading
from .null_text_fit import Fitted, Residual, along_pivots


@dataclass(frozen=True)
class NullTextOptions:
    """guidance_scale: the guidance the embeddings are fitted for, and the edit's default.

    Step i counts from the noisiest, 0. learning_rate falls as `1 - i / 100`; beyond 50
    steps as `1 - i / (2 steps)`, so that it never reaches 0. A row stops when its loss before the
    last update was under `early_stop + i * early_stop_growth` (mean square of latents).

    fit_pooled: SDXL's pooled vector is fitted along with the hidden states, by the same Adam; twice
    the gradients. The paper's models have none.
    """

    guidance_scale: float = 7.5
    inner_steps: int = 10
    learning_rate: float = 1e-2
    early_stop: float = 1e-5
    early_stop_growth: float = 2e-5
    fit_pooled: bool = False

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
    With fit_pooled it stores `null_pooled` [B, steps, P] too. Raises ValueError for fit_pooled
    where there is no pooled vector.
    """
    if options.fit_pooled and null.pooled is None:
        raise ValueError("fit_pooled=True fits SDXL's pooled vector, which this model has not")

    def by_adam(residual: Residual, null: Conditioning, step: int) -> Algorithm[Fitted]:
        return fit(residual, null, step, schedule.steps, options)

    return (
        yield from along_pivots(
            schedule, latents, conditioning, null, options.guidance_scale, by_adam,
            options.inner_steps, keep_pooled=options.fit_pooled,
        )
    )  # fmt: skip


def fit(
    residual: Residual, null: Conditioning, step: int, steps: int, options: NullTextOptions
) -> Algorithm[Fitted]:
    """Minimise Eq. 3, a step's mean squared distance from its pivot, over the null embedding (and
    the pooled vector, if asked) by Adam, its state fresh. Rows that stop are not asked again.
    """
    embedding, pooled = null.hidden_states, null.pooled
    losses = embedding.new_full((residual.rows, options.inner_steps), torch.nan)
    learning_rate = options.learning_rate * (1 - step / max(100, 2 * steps))
    enough = options.early_stop + step * options.early_stop_growth

    active = torch.arange(residual.rows, device=embedding.device)  # rows still being fitted
    state = AdamState.fresh(embedding)
    of_pooled = None if pooled is None or not options.fit_pooled else AdamState.fresh(pooled)
    for inner in range(options.inner_steps):
        here = replace(null, hidden_states=embedding, pooled=pooled).select(active)
        answer = yield from residual.select(active).gradient(here)
        reading = LossReading(answer.loss)
        if pooled is not None and of_pooled is not None:
            other = yield from residual.select(active).gradient(here, "pooled")
            vector, of_pooled = adam_step(pooled[active], other.gradient, of_pooled, learning_rate)
            pooled = pooled.index_copy(0, active, vector)
        moved, state = adam_step(embedding[active], answer.gradient, state, learning_rate)
        embedding = embedding.index_copy(0, active, moved)
        losses[active, inner] = answer.loss.to(losses.dtype)
        going_on = (reading.values() >= enough).nonzero().flatten()  # on the host
        if len(going_on) == 0:
            break
        if len(going_on) < len(active):
            going_on = going_on.to(active.device)
            active, state = active[going_on], state.select(going_on)
            of_pooled = None if of_pooled is None else of_pooled.select(going_on)
    return Fitted(replace(null, hidden_states=embedding, pooled=pooled), losses)


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

    Source and targets share their image's embeddings, unless an edit's window leaves its target the
    empty prompt's. inverted, conditioning and null hold R rows each. options: of the inversion;
    what was fitted is stored, so none is needed.
    """
    embeddings, vectors = inverted.stored["null_embeddings"], inverted.stored.get("null_pooled")

    def fitted(step: int) -> Conditioning:
        takes = control.takes_fitted_null(step, len(embeddings)).to(embeddings.device)
        here = torch.where(takes[:, None, None], embeddings[:, step], null.hidden_states)
        pooled = null.pooled
        if pooled is not None and vectors is not None:
            pooled = torch.where(takes[:, None], vectors[:, step], pooled)
        return replace(null, hidden_states=here, pooled=pooled)

    return (
        yield from sample(schedule, inverted.noise, conditioning, fitted, guidance_scale, control)
    )
