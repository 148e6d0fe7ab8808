"""Prompt-to-Prompt (Hertz et al. 2022, arXiv:2208.01626, Algorithm 1) on explicit attention maps.

One source and T targets at once. UNet rows: [uncond source, uncond targets, cond source, cond
targets]; only the conditional half is edited. The controls are cast to the maps' dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.attention import explicit_copy
from baselines.local_blend import LocalBlend, blend_mask, word_maps
from baselines.schedule import Schedule, ddim_step, predict_eps


@dataclass(frozen=True)
class Controls:
    """What to do to the targets' maps. `None` switches a control off.

    Cross-attention, in this order, as the authors' controllers chain:
      base = A_s mapper                                   `mapper [T, L, L]`, [source, target]
      base = A_s[gather] a + A_t (1 - a)                  `gather [T, L]`, `gather_alpha [T, L]`
      base = A_s                                          neither, but an equalizer
      base = base * equalizer                             `equalizer [T, L]`, target's tokens
      A_t <- base * alpha + A_t (1 - alpha)               `cross_alpha [steps, T, L]`; None is ones
    Self-attention: targets take the source's map at steps `first <= step < last` of `self_window`
    in layers with at most `self_max_pixels` positions.
    """

    mapper: Tensor | None = None
    gather: Tensor | None = None
    gather_alpha: Tensor | None = None
    equalizer: Tensor | None = None
    cross_alpha: Tensor | None = None
    self_window: tuple[int, int] = (0, 0)
    self_max_pixels: int = 0
    blend: LocalBlend | None = None

    def __post_init__(self) -> None:
        if self.mapper is not None and self.gather is not None:
            raise ValueError("give a mapper (word swap) or a gather (refinement), not both")
        if (self.gather is None) != (self.gather_alpha is None):
            raise ValueError("refinement needs gather and gather_alpha together")


@dataclass(frozen=True)
class StepRecord:
    """After one step: the latents (blended), the rows' eps, the word maps so far, the mask.

    `latents [1+T, C, h, w]`; `eps [2(1+T), C, h, w]`; `word_maps [1+T, H, W]` (None without a
    LocalBlend): the blend words' edited maps, mean over heads and layers, summed over the steps;
    `mask [1+T, 1, h, w]` bool (None where the blend did not act).
    """

    step: int
    latents: Tensor
    eps: Tensor
    word_maps: Tensor | None
    mask: Tensor | None


def edit_cross(source: Tensor, targets: Tensor, controls: Controls, step: int) -> Tensor:
    """Source's map `[heads, N, L]` and the targets' `[T, heads, N, L]` -> the targets' edited."""
    like = targets
    if controls.mapper is not None:
        mapper = controls.mapper.to(like)
        base = torch.stack([source @ mapper[t] for t in range(len(targets))])
    elif controls.gather is not None and controls.gather_alpha is not None:
        index, aligned = controls.gather.to(like.device), controls.gather_alpha.to(like)
        taken = torch.stack([source[:, :, index[t]] for t in range(len(targets))])
        base = taken * aligned[:, None, None, :] + targets * (1 - aligned[:, None, None, :])
    elif controls.equalizer is not None:
        base = source[None].expand_as(targets)
    else:
        return targets
    if controls.equalizer is not None:
        base = base * controls.equalizer.to(like)[:, None, None, :]
    if controls.cross_alpha is None:
        return base
    alpha = controls.cross_alpha[step].to(like)[:, None, None, :]
    return base * alpha + targets * (1 - alpha)


def edit_self(source: Tensor, targets: Tensor, controls: Controls, step: int) -> Tensor:
    """Source's `[heads, N, N]` for the targets' `[T, heads, N, N]`, inside window and size."""
    first, last = controls.self_window
    if first <= step < last and targets.shape[2] <= controls.self_max_pixels:
        return source[None].expand_as(targets)
    return targets


class Editor:
    """The map hook: edits the conditional half and keeps the cross-attention maps for LocalBlend.

    `kept` are this step's edited conditional maps `[1+T, heads, N, L]` of layers with N equal to
    the blend's. `step` is set before a forward pass.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.rows = 0
        self.step = 0
        self.kept: list[Tensor] = []

    def begin(self, step: int, rows: int) -> None:
        """Before a forward pass at `step` with `rows = 1 + T` conditional rows."""
        self.step, self.rows, self.kept = step, rows, []

    def __call__(self, attention: Tensor, is_cross: bool, place: str) -> Tensor:
        maps = attention.reshape(2 * self.rows, -1, *attention.shape[1:])
        uncond, cond = maps[: self.rows], maps[self.rows :]  # [1 + T, heads, N, L]
        edit = edit_cross if is_cross else edit_self
        targets = edit(cond[0], cond[1:], self.controls, self.step)
        cond = torch.cat([cond[:1], targets])
        blend = self.controls.blend
        if is_cross and blend is not None and cond.shape[2] == blend.pixels:
            self.kept.append(cond)
        return torch.cat([uncond, cond]).reshape(attention.shape)


def null_at(null: Tensor, step: int) -> Tensor:
    """`[L, D]` out of one embedding `[L, D]` or one per step `[steps, L, D]`."""
    return null if null.ndim == 2 else null[step]


def predict_rows(
    unet: torch.nn.Module,
    editor: Editor,
    schedule: Schedule,
    step: int,
    latents: Tensor,
    cond: Tensor,
    null: Tensor,
) -> Tensor:
    """eps `[2(1+T), C, h, w]` of latents `[1+T, C, h, w]` on a UNet whose hook is the editor."""
    rows = cond.shape[0]
    editor.begin(step, rows)
    text = torch.cat([null_at(null, step)[None].expand(rows, -1, -1), cond])
    return predict_eps(unet, schedule, step, torch.cat([latents, latents]), text)


@torch.no_grad()
def forward_pass(
    unet: torch.nn.Module,
    schedule: Schedule,
    latents: Tensor,
    step: int,
    cond: Tensor,
    null: Tensor,
    controls: Controls,
) -> Tensor:
    """One edited forward pass at a step: latents `[1+T, C, h, w]` -> eps `[2(1+T), C, h, w]`."""
    editor = Editor(controls)
    return predict_rows(explicit_copy(unet, editor), editor, schedule, step, latents, cond, null)


@torch.no_grad()
def edit_steps(
    unet: torch.nn.Module,
    schedule: Schedule,
    noise: Tensor,
    cond: Tensor,
    null: Tensor,
    controls: Controls,
    guidance_scale: float = 7.5,
) -> Iterator[StepRecord]:
    """The whole edit, one record a step; arguments as in `edit`."""
    editor = Editor(controls)
    unet = explicit_copy(unet, editor)
    rows = cond.shape[0]
    latents = noise.expand(rows, -1, -1, -1)
    summed: Tensor | None = None  # maps [1 + T, layers * heads, N, L] over the steps so far
    for i in range(schedule.steps):
        eps = predict_rows(unet, editor, schedule, i, latents, cond, null)
        eps_w = eps[:rows] + guidance_scale * (eps[rows:] - eps[:rows])
        latents = ddim_step(latents, eps_w, schedule.alpha_bar[i], schedule.alpha_bar_prev[i])
        mask, words = None, None
        blend = controls.blend
        if blend is not None:
            if not editor.kept:
                raise ValueError(f"no cross-attention layer has {blend.pixels} positions")
            maps = torch.cat(editor.kept, dim=1)
            summed = maps if summed is None else summed + maps
            words = word_maps(summed, blend.word_alpha, blend.map_shape)[:, 0]
            if i >= int(blend.start * schedule.steps):
                mask = blend_mask(summed, blend, (latents.shape[2], latents.shape[3]))
                latents = latents[:1] + mask.to(latents) * (latents - latents[:1])
        yield StepRecord(i, latents, eps, words, mask)


def edit(
    unet: torch.nn.Module,
    schedule: Schedule,
    noise: Tensor,
    cond: Tensor,
    null: Tensor,
    controls: Controls,
    guidance_scale: float = 7.5,
) -> Tensor:
    """`noise [1, C, h, w]` or `[1+T, ..]`, `cond [1+T, L, D]` (source first) -> `[1+T, C, h, w]`.

    `null` is `[L, D]`, or `[steps, L, D]`, noisiest step first; source and targets share it.
    """
    latents = noise
    for record in edit_steps(unet, schedule, noise, cond, null, controls, guidance_scale):
        latents = record.latents
    return latents
