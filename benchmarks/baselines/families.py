"""DDIM, null-text, direct inversion and Prompt-to-Prompt once more, for every family of model.

What SD 1.x does not have is here: v-prediction, zero terminal SNR with trailing timesteps
(Lin et al. 2023, arXiv:2305.08891), SDXL's pooled vector and time ids. One image, float64, plainly;
nothing of the engine is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baselines.attention import explicit_copy
from baselines.null_text import frozen
from baselines.prompt_to_prompt import Controls, Editor
from baselines.schedule import alpha_bar_table


@dataclass(frozen=True)
class Text:
    """`hidden [B, L, D]`; SDXL: `pooled [B, P]`, `time_ids [B, 6]`."""

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def below(self, other: Text) -> Text:
        """This text's rows, then the other's."""
        if self.pooled is None or self.time_ids is None:
            return Text(torch.cat([self.hidden, other.hidden]))
        return Text(
            torch.cat([self.hidden, other.hidden]),
            torch.cat([self.pooled, other.pooled]),  # type: ignore[list-item]
            torch.cat([self.time_ids, other.time_ids]),  # type: ignore[list-item]
        )


@dataclass(frozen=True)
class Grid:
    """Noisiest first; step i goes from `levels[i]` down to `levels[i + 1]`."""

    timesteps: list[int]
    levels: list[float]  # alpha_bar, one more than timesteps
    prediction_type: str


def table(config: Mapping[str, Any]) -> list[float]:
    """alpha_bar at each training timestep; Algorithm 1 of Lin et al. where the config asks."""
    rescaled = config.get("rescale_betas_zero_snr", False)
    plain = alpha_bar_table({**config, "rescale_betas_zero_snr": False})
    if not rescaled:
        return plain
    roots = [math.sqrt(each) for each in plain]
    first, last = roots[0], roots[-1]
    return [((root - last) * first / (first - last)) ** 2 for root in roots]


def grid(config: Mapping[str, Any], steps: int) -> Grid:
    alpha_bars = table(config)
    stride = len(alpha_bars) // steps
    if config["timestep_spacing"] == "trailing":
        timesteps = [round(len(alpha_bars) * (1 - i / steps)) - 1 for i in range(steps)]
    else:
        timesteps = [i * stride + config["steps_offset"] for i in reversed(range(steps))]
    final = 1.0 if config["set_alpha_to_one"] else alpha_bars[0]
    levels = [alpha_bars[timestep] for timestep in timesteps]
    return Grid(timesteps, [*levels, final], config["prediction_type"])


def output(unet: torch.nn.Module, latents: Tensor, timestep: int, text: Text) -> Tensor:
    """What the network says, `[B, C, h, w]`."""
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": text.time_ids}
    said: Tensor = unet(
        latents, timestep, encoder_hidden_states=text.hidden, added_cond_kwargs=added
    ).sample
    return said


def eps_and_x0(said: Tensor, latents: Tensor, alpha_bar: float, kind: str) -> tuple[Tensor, Tensor]:
    """`z = sqrt(ab) x0 + sqrt(1 - ab) eps`; v is `sqrt(ab) eps - sqrt(1 - ab) x0`."""
    signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if kind == "v_prediction":
        return signal * said + spread * latents, signal * latents - spread * said
    return said, (latents - spread * said) / signal


@torch.no_grad()
def pivots(unet: torch.nn.Module, steps: Grid, latents: Tensor, text: Text) -> list[Tensor]:
    """DDIM backwards at guidance 1: clean first, noisiest last.

    The network is asked at the lower latents with the upper timestep, and what it says is read at
    the upper level; where that is pure noise, at the lower.
    """
    found = [latents]
    for i in reversed(range(len(steps.timesteps))):
        high, low = steps.levels[i], steps.levels[i + 1]
        said = output(unet, latents, steps.timesteps[i], text)
        eps, _ = eps_and_x0(said, latents, high if high > 0 else low, steps.prediction_type)
        x0 = (latents - math.sqrt(1 - low) * eps) / math.sqrt(low)
        latents = math.sqrt(high) * x0 + math.sqrt(1 - high) * eps
        found.append(latents)
    return found


def step_down(
    steps: Grid, i: int, latents: Tensor, said_null: Tensor, said_text: Tensor, scale: float
) -> Tensor:
    """A guided DDIM step; eps and x0 are guided each, so that pure noise is a level like others."""
    level, kind = steps.levels[i], steps.prediction_type
    eps_null, x0_null = eps_and_x0(said_null, latents, level, kind)
    eps_text, x0_text = eps_and_x0(said_text, latents, level, kind)
    eps = eps_null + scale * (eps_text - eps_null)
    x0 = x0_null + scale * (x0_text - x0_null)
    low = steps.levels[i + 1]
    return math.sqrt(low) * x0 + math.sqrt(1 - low) * eps


@torch.no_grad()
def sample(
    unet: torch.nn.Module,
    steps: Grid,
    latents: Tensor,
    text: Text,
    nulls: list[Text],
    scale: float,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Down with a null text for each step. kept: pivots, clean first, that it is put back on."""
    for i, timestep in enumerate(steps.timesteps):
        said_null = output(unet, latents, timestep, nulls[i])
        said_text = output(unet, latents, timestep, text)
        latents = step_down(steps, i, latents, said_null, said_text, scale)
        if kept is not None:
            latents = kept[len(steps.timesteps) - i - 1]
    return latents


def null_texts(
    unet: torch.nn.Module,
    steps: Grid,
    along: list[Tensor],
    text: Text,
    null: Text,
    scale: float,
    updates: int,
    pooled_too: bool = False,
) -> list[Text]:
    """Null-text's fit (arXiv:2211.09794, Algorithm 1) by torch's Adam; no early stop. At pure noise
    the paper's eps is not the network's to give, and nothing is fitted.
    """
    found, latents = [], along[-1]
    with frozen(unet):
        for i, timestep in enumerate(steps.timesteps):
            with torch.no_grad():
                said_text = output(unet, latents, timestep, text)
            hidden = null.hidden.clone().requires_grad_()
            pooled = null.pooled
            fitted = [hidden]
            if pooled_too and pooled is not None:
                pooled = pooled.clone().requires_grad_()
                fitted.append(pooled)
            adam = torch.optim.Adam(fitted, lr=1e-2 * (1 - i / 100))
            for _ in range(updates if steps.levels[i] > 0 else 0):
                said = output(unet, latents, timestep, Text(hidden, pooled, null.time_ids))
                reached = step_down(steps, i, latents, said, said_text, scale)
                adam.zero_grad()
                (reached - along[-2 - i]).square().mean().backward()
                adam.step()
            null = Text(hidden.detach(), None if pooled is None else pooled.detach(), null.time_ids)
            with torch.no_grad():
                said = output(unet, latents, timestep, null)
                latents = step_down(steps, i, latents, said, said_text, scale)
            found.append(null)
    return found


@torch.no_grad()
def edit(
    unet: torch.nn.Module,
    steps: Grid,
    noise: Tensor,
    text: Text,
    null: Text,
    controls: Controls,
    scale: float,
) -> Tensor:
    """Prompt-to-Prompt on explicit maps: text and null hold the source's row, then the targets'."""
    editor = Editor(controls)
    explicit = explicit_copy(unet, editor)
    rows = text.hidden.shape[0]
    latents = noise.expand(rows, -1, -1, -1)
    for i, timestep in enumerate(steps.timesteps):
        editor.begin(i, rows)
        said = output(explicit, torch.cat([latents, latents]), timestep, null.below(text))
        latents = step_down(steps, i, latents, said[:rows], said[rows:], scale)
    return latents
