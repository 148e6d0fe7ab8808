"""Prompt-to-Prompt as a control: gives each step its routes, and blends latents after it.

Hertz et al. 2022, "Prompt-to-Prompt Image Editing with Cross Attention Control" (arXiv:2208.01626).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.errors import EditWithoutEffectError
from pivotal.tokens import Tokens

from .blend import blend, feathered, latent_mask, word_mask
from .edit import Edit, step_range
from .routes import Layers, TargetPlan, injected, plan_target, routes_at, word_columns


@dataclass(frozen=True)
class Touched:
    """How many layers and steps a control reached.

    Zero of a control that was asked for is an error.
    """

    layers: int
    steps: int


class PromptToPrompt:
    """The control of one replay of [source, targets..]; it holds the maps summed so far.

    source, targets: tokens, one target for each edit. steps: of the schedule; windows are shares of
    them all. first_step: where the replay starts; what acts only before it acts at no step.
    pixels_a_latent: along a side. Raises ValueError for words that are not there,
    EditWithoutEffectError if an edit would touch no layer or no step.
    """

    def __init__(
        self,
        source: Tokens,
        targets: Sequence[Tokens],
        edits: Sequence[Edit],
        steps: int,
        layers: Layers,
        first_step: int = 0,
        pixels_a_latent: int = 8,
    ) -> None:
        if not edits:
            raise ValueError("edits are empty; at least one target is expected")
        self.steps = steps
        self.layers = layers
        self.first_step = first_step
        self.pixels_a_latent = pixels_a_latent
        self.plans = [
            _from_step(first_step, plan_target(source, target, edit, steps))
            for target, edit in zip(targets, edits, strict=True)
        ]
        self.columns = word_columns(self.plans)
        self.maps: Tensor | None = None  # [1 + T, K, mh, mw], summed over the steps so far
        self.masks: Tensor | None = None  # [T, h, w] bool, of the last blended step, unfeathered
        self._drawn: dict[int, Tensor] = {}  # the users' masks by target, at the latents' size
        for plan in self.plans:
            _require_effect(plan, steps, layers, first_step)

    def routes(self, step: int) -> AttentionRoutes:
        return routes_at(step, self.plans, self.columns, self.layers)

    def after_step(self, step: int, latents: Tensor, word_maps: Tensor | None) -> Tensor:
        """Sum up the maps; from the blend's start on, put the source back outside the masks."""
        if word_maps is None:
            raise EditWithoutEffectError("the network returned no word maps for a routed step")
        self.maps = word_maps if self.maps is None else self.maps + word_maps
        size = (latents.shape[-2], latents.shape[-1])
        masks = [
            self._mask(index, plan, step, self.maps, size) for index, plan in enumerate(self.plans)
        ]
        if all(mask is None for mask in masks):
            return latents
        everywhere = torch.ones(size, dtype=torch.bool, device=latents.device)
        self.masks = torch.stack([everywhere if mask is None else mask for mask in masks])
        edits = [plan.edit for plan in self.plans]
        weights = [
            everywhere
            if edit.preserve == "none"
            else feathered(mask, edit.feather / self.pixels_a_latent)
            for mask, edit in zip(self.masks, edits, strict=True)
        ]
        return blend(latents, torch.stack(weights))

    def sources(self, rows: int) -> Tensor:
        """All rows are edits of the first."""
        return torch.zeros(rows, dtype=torch.int64)

    def takes_fitted_null(self, step: int, rows: int) -> Tensor:
        """The source's row always; a target's row inside its edit's window."""
        inside = [step in step_range(plan.edit.null_text_steps, self.steps) for plan in self.plans]
        return torch.tensor([True, *inside])

    def heat_maps(self, target: int) -> dict[str, Tensor]:
        """The attention of a target's edited words, summed over the steps: word to [mh, mw]."""
        if self.maps is None:
            return {}
        words = self.plans[target].heat_words
        return {word.text: self.maps[1 + target, 2 + place] for place, word in enumerate(words)}

    def touched(self, target: int) -> dict[str, Touched]:
        """Layers and steps that each control of a target reaches: cross, self, blend, mask."""
        plan, edit = self.plans[target], self.plans[target].edit
        cross_steps = int(plan.windows.any(dim=1).sum())
        self_layers = len(injected(self.layers))
        reached = {
            "cross": Touched(len(self.layers.cross_downscales) if cross_steps else 0, cross_steps),
            "self": Touched(self_layers if plan.self_steps else 0, len(plan.self_steps)),
        }
        kept = edit.preserve != "none"
        if kept and plan.blend_columns[0].any():
            start = max(_blend_start(edit, self.steps), self.first_step)
            reached["blend"] = Touched(1, self.steps - start)
        if edit.mutual is not None:
            shared = edit.mutual.layers(len(self.layers.self_downscales))
            during = edit.mutual.steps(self.steps, self.first_step)
            reached["mutual"] = Touched(len(shared), len(during))
        if kept and edit.mask is not None:
            reached["mask"] = Touched(1, self.steps - self.first_step)
        return reached

    def _mask(
        self, index: int, plan: TargetPlan, step: int, maps: Tensor, size: tuple[int, int]
    ) -> Tensor | None:
        """Where a target may change after this step: [h, w] bool, or None for everywhere."""
        edit = plan.edit
        mask = None
        if edit.mask is not None:
            if index not in self._drawn:  # once: it comes from the CPU
                self._drawn[index] = latent_mask(edit.mask.to(maps.device), size)
            mask = self._drawn[index]
        if edit.mask_with_blend == "or" and step < _blend_start(edit, self.steps):
            return None
        if plan.blend_columns[0].any() and step >= _blend_start(edit, self.steps):
            # The source's region joins the target's, in what is blended and in what is subtracted.
            pairs = [
                torch.stack([maps[0, 2 * index + use], maps[1 + index, use]]) for use in range(2)
            ]
            region = word_mask(pairs[0], size, edit.blend_threshold, pool=True).any(dim=0)
            spared = word_mask(pairs[1], size, edit.subtract_threshold, pool=False).any(dim=0)
            region = region & ~spared
            if mask is None:
                return region
            mask = mask | region if edit.mask_with_blend == "or" else mask & region
        return mask


def _blend_start(edit: Edit, steps: int) -> int:
    """The first step that is blended; 0.3 of 10 steps is 3 in spite of rounding."""
    return int(edit.blend_start * steps + 1e-9)


def _from_step(first: int, plan: TargetPlan) -> TargetPlan:
    """A plan without what would act before the first step that runs."""
    windows = plan.windows.clone()
    windows[:first] = 0
    during = range(max(plan.self_steps.start, first), plan.self_steps.stop)
    return replace(plan, windows=windows, self_steps=during)


def _require_effect(plan: TargetPlan, steps: int, layers: Layers, first_step: int) -> None:
    """Refuse, before anything runs, an edit that would silently do nothing."""
    during = f"{steps} steps"
    if first_step:
        during = f"the {steps - first_step} steps, of {steps}, that the replay runs"
    crossed = bool(plan.windows.any()) and len(layers.cross_downscales) > 0
    injects = len(plan.self_steps) > 0 and len(injected(layers)) > 0
    target = plan.edit.target
    mutual = plan.edit.mutual
    if mutual is not None and not (
        mutual.layers(len(layers.self_downscales)) and mutual.steps(steps, first_step)
    ):
        raise EditWithoutEffectError(
            f"{mutual} of the edit to {target!r} leaves none of {during} and "
            f"{len(layers.self_downscales)} layers; start earlier"
        )
    if not crossed and not injects and mutual is None:
        raise EditWithoutEffectError(
            f"the edit to {target!r} touches no layer at any of {during}; widen "
            "cross_replace_steps or self_replace_steps"
        )
    if (plan.weights[~plan.windows.any(dim=0)] != 1).any():
        raise EditWithoutEffectError(
            f"weights of the edit to {target!r} act at no step; widen the words' windows in "
            "cross_replace_steps"
        )
    if plan.edit.blend and not plan.blend_columns[0].any():
        raise EditWithoutEffectError(
            f"blend={plan.edit.blend!r} finds no word that differs between the source and "
            f"{target!r}; name the words that bound the change"
        )
    if plan.edit.blend and _blend_start(plan.edit, steps) >= steps:
        raise EditWithoutEffectError(
            f"blend_start={plan.edit.blend_start} leaves the blend of the edit to {target!r} "
            f"none of {steps} steps; start earlier"
        )
    if plan.edit.mask is not None and not plan.edit.mask.any():
        raise EditWithoutEffectError(f"the mask of the edit to {target!r} lets nothing change")
