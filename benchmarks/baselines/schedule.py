"""DDIM's noise levels and its one step, literally (Song et al. 2020, arXiv:2010.02502, Eq. 12).

The table is float64 Python numbers, made from a scheduler's config given as a plain dict. Only what
the Prompt-to-Prompt and null-text notebooks ran is here: leading spacing, no clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A DDIM grid of `steps` steps; index 0 is the noisiest, as in sampling.

    Step `i` goes from level `alpha_bar[i]` (the network is asked at `timesteps[i]`) down to
    `alpha_bar_prev[i]`, which is `alpha_bar[i + 1]`, or the final level at the last step.
    """

    timesteps: list[int]
    alpha_bar: list[float]
    alpha_bar_prev: list[float]
    prediction_type: str

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def alpha_bar_table(config: Mapping[str, Any]) -> list[float]:
    """`alpha_bar(t) = prod_{s <= t} (1 - beta_s)` for every training timestep t, in float64."""
    count = int(config.get("num_train_timesteps", 1000))
    first = float(config.get("beta_start", 0.0001))
    last = float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr", False):
        raise ValueError("the baseline knows no trained_betas and no rescale_betas_zero_snr")

    table = []
    product = 1.0
    for t in range(count):
        share = t / (count - 1)
        if kind == "linear":
            beta = first + share * (last - first)
        elif kind == "scaled_linear":
            root = math.sqrt(first) + share * (math.sqrt(last) - math.sqrt(first))
            beta = root * root
        else:
            raise ValueError(f"beta_schedule {kind!r}: the baseline knows linear, scaled_linear")
        product *= 1.0 - beta
        table.append(product)
    return table


def ddim_timesteps(config: Mapping[str, Any], steps: int) -> list[int]:
    """`i * (T // steps) + steps_offset` for i = steps-1 .. 0: leading spacing, noisiest first."""
    spacing = config.get("timestep_spacing", "leading")
    if spacing != "leading":
        raise ValueError(f"timestep_spacing {spacing!r}: the baseline knows leading")
    stride = int(config.get("num_train_timesteps", 1000)) // steps
    offset = int(config.get("steps_offset", 0))
    return [i * stride + offset for i in reversed(range(steps))]


def make_schedule(config: Mapping[str, Any], steps: int) -> Schedule:
    """The grid of a scheduler's config; absent keys have diffusers' DDIMScheduler defaults.

    A step ends at timestep `t - T // steps`. Where that is negative it ends at alpha_bar 1
    (`set_alpha_to_one`) or at the table's first entry.
    """
    if config.get("thresholding", False) or config.get("clip_sample", False):
        raise ValueError("the baseline does not clip x0: clip_sample and thresholding must be off")
    table = alpha_bar_table(config)
    timesteps = ddim_timesteps(config, steps)
    stride = len(table) // steps
    final = 1.0 if config.get("set_alpha_to_one", True) else table[0]
    return Schedule(
        timesteps=timesteps,
        alpha_bar=[table[t] for t in timesteps],
        alpha_bar_prev=[table[t - stride] if t - stride >= 0 else final for t in timesteps],
        prediction_type=str(config.get("prediction_type", "epsilon")),
    )


def ddim_step(latents: Tensor, eps: Tensor, alpha_bar_from: float, alpha_bar_to: float) -> Tensor:
    """DDIM at eta 0, up or down: `z_to = sqrt(ab_to) x0 + sqrt(1 - ab_to) eps`."""
    x0 = (latents - math.sqrt(1.0 - alpha_bar_from) * eps) / math.sqrt(alpha_bar_from)
    return math.sqrt(alpha_bar_to) * x0 + math.sqrt(1.0 - alpha_bar_to) * eps


def to_eps(output: Tensor, latents: Tensor, alpha_bar_asked: float, prediction_type: str) -> Tensor:
    """eps from what the network predicts; `alpha_bar_asked` belongs to the timestep it was asked.

    On the way up that is the destination's level, not the one that the latents have.
    """
    signal, noise = math.sqrt(alpha_bar_asked), math.sqrt(1.0 - alpha_bar_asked)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return signal * output + noise * latents
    if prediction_type == "sample":
        return (latents - signal * output) / noise
    raise ValueError(f"prediction_type {prediction_type!r}: epsilon, v_prediction or sample")


def predict_eps(
    unet: torch.nn.Module, schedule: Schedule, step: int, latents: Tensor, hidden_states: Tensor
) -> Tensor:
    """The network at `timesteps[step]`: latents `[B, C, h, w]`, text `[B, L, D]` -> eps."""
    asked = schedule.timesteps[step]
    output: Tensor = unet(latents, asked, encoder_hidden_states=hidden_states).sample
    return to_eps(output, latents, schedule.alpha_bar[step], schedule.prediction_type)
