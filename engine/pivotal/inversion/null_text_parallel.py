"""Null-text inversion, all timesteps at once: each fitted from its pivot, as rows of one batch.

The fits ignore what earlier steps left over, so in `replay` the source is kept on its pivots: then
the premise holds exactly, reconstruction is exact by construction, and targets use embeddings
that were fitted at the right point. Line searches as in `null_text_line_search`. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Denoise, Progress
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import Schedule

from . import ddim, null_text
from .base import Inverted
from .null_text_fit import Residual
from .null_text_line_search import LineSearchOptions, search_rows
from .pivots import KeptOnPivots


@dataclass(frozen=True)
class ParallelOptions(LineSearchOptions):
    """As the line search's; but every timestep starts from the null prompt."""


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: ParallelOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise, `null_embeddings` [B, steps, L, D] and `pivots`
    [B, steps + 1, C, h, w].

    Costs `steps * (1 + 1 + 2 iterations + 1)` UNet rows an image, but `steps` of them one after
    another: the rest are `2 + 2 iterations` batches.
    """
    pivots = yield from ddim.trajectory(schedule, latents, conditioning, null, ddim.DDIMOptions())
    yield from Progress("fit", 0, 1)
    images, steps, w = latents.shape[0], schedule.steps, options.guidance_scale
    stacked = torch.stack(pivots[::-1], dim=1)
    # Rows are [image, step], image first.
    at = stacked[:, :-1].flatten(0, 1)
    wanted = stacked[:, 1:].flatten(0, 1)
    pairs = [(high, low) for _, high, low in schedule.descending()]
    coefficients = [
        ddim_coefficients(high, low) if high.alpha_bar > 0 else (0.0, 0.0) for high, low in pairs
    ]

    def each(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=latents.device).repeat(images)

    timesteps = each([high.timestep for high, _ in pairs], torch.float32)
    alpha_bars = each([high.alpha_bar for high, _ in pairs], torch.float64)
    slopes = each([b * (1 - w) for _, b in coefficients], latents.dtype)
    rows = torch.arange(images, device=latents.device).repeat_interleave(steps)
    nulls = null.select(rows)
    losses = latents.new_full((images * steps, options.iterations), torch.nan)
    embedding = nulls.hidden_states
    fitted = slopes.nonzero().flatten()  # not at zero terminal SNR, nor where a step stands still
    if len(fitted):
        cond = yield from Denoise(
            at[fitted], timesteps[fitted], alpha_bars[fitted], conditioning.select(rows[fitted])
        )
        a = each([a for a, _ in coefficients], latents.dtype)[fitted][:, None, None, None]
        b = each([b for _, b in coefficients], latents.dtype)[fitted][:, None, None, None]
        residual = Residual(
            at[fitted],
            timesteps[fitted],
            alpha_bars[fitted],
            slopes[fitted],
            a * at[fitted] + b * w * cond.eps - wanted[fitted],
        )
        most = [options.searches(step, steps) for step, _, _ in schedule.descending()]
        found = yield from search_rows(
            residual, nulls.select(fitted), options, each(most, torch.int64)[fitted]
        )
        embedding = embedding.index_copy(0, fitted, found.null.hidden_states)
        losses[fitted] = found.losses
    return Inverted(
        noise=pivots[-1],
        stored={"null_embeddings": embedding.unflatten(0, (images, steps)), "pivots": stacked},
        diagnostics={"losses": losses.unflatten(0, (images, steps))},
    )


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: ParallelOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back with the fitted embeddings, sources kept on their pivots. Returns latents
    [R, C, h, w].
    """
    kept = KeptOnPivots(control, inverted.stored["pivots"])
    return (
        yield from null_text.replay(
            schedule, inverted, conditioning, null, guidance_scale, kept, options
        )
    )
