"""The wish to tensors: an edit as attention routes for each step.

Every cross-attention edit is `A_s mix + A_t keep` with

    mix = mapper diag(c alpha)        keep = (1 - shared) c alpha + (1 - alpha)

c the words' weights, alpha their windows, `shared` the target tokens that have a counterpart in the
source (all of them in a swap or a re-weighting). Rows are [source, targets..].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.tokens import Tokens, Word

from .alignment import Alignment, align, choose
from .edit import DEFAULT, Edit, Window, step_range
from .masactrl import with_mutual

WORD_COLUMNS = 16
"""Capacity for word maps. Fixed, so that no edit changes a shape."""


@dataclass(frozen=True)
class Layers:
    """What routes need to know of a UNet: its attention layers' downscale, in running order.

    injected_from: self-attention is injected in layers whose side is at most the latents' over
    this.
    """

    self_downscales: tuple[int, ...]
    cross_downscales: tuple[int, ...]
    injected_from: int = 2


@dataclass(frozen=True)
class TargetPlan:
    """One target's edit, resolved: tensors and step ranges, ready to become routes."""

    edit: Edit
    alignment: Alignment
    weights: Tensor  # [L], c
    windows: Tensor  # [steps, L], alpha: 1 where the source's cross-attention acts
    self_steps: range
    blend_columns: Tensor  # [2, 2, L]: blend and subtract words, in source and in target
    heat_words: tuple[Word, ...]  # target words worth a heat-map


def plan_target(source: Tokens, target: Tokens, edit: Edit, steps: int) -> TargetPlan:
    """Resolve a wish against both prompts. Raises ValueError for a word that neither prompt has,
    and for one of a mask that the source has not.
    """
    for name in edit.mask_words:
        source.find(name)
    kind = choose(source, target) if edit.kind == "auto" else edit.kind
    alignment = align(source, target, kind)
    weights = torch.ones(len(target.ids))
    weighted: list[Word] = []
    for name, factor in edit.weights.items():
        tokens = target.find(name)
        weights[list(tokens)] = factor
        weighted.append(Word(name, tokens))
    blend = _differing(alignment) if edit.blend == "auto" else _named(edit.blend, source, target)
    return TargetPlan(
        edit=edit,
        alignment=alignment,
        weights=weights,
        windows=_windows(edit.cross_replace_steps, target, steps),
        self_steps=step_range(edit.self_replace_steps, steps),
        blend_columns=torch.stack([blend, _named(edit.subtract, source, target)]),
        heat_words=_told_apart((*alignment.changed[1], *weighted) or target.words(), target)[
            : WORD_COLUMNS - 2
        ],
    )


def word_columns(plans: Sequence[TargetPlan]) -> Tensor:
    """Columns whose maps are wanted: [1 + T, L, WORD_COLUMNS].

    A target's row holds its blend words, its subtract words, then one column a heat-map word (the
    first ones, as many as fit). The source's row holds, for target t, blend words in column 2t and
    subtract words in 2t + 1. Raises ValueError for more targets than the capacity holds.
    """
    length = plans[0].weights.shape[0]
    if 2 * len(plans) > WORD_COLUMNS:
        raise ValueError(
            f"{len(plans)} targets at once; at most {WORD_COLUMNS // 2} fit, edit the rest in "
            "another call"
        )
    columns = torch.zeros(1 + len(plans), length, WORD_COLUMNS)
    for index, plan in enumerate(plans):
        for use in range(2):
            columns[0, :, 2 * index + use] = plan.blend_columns[use, 0]
            columns[1 + index, :, use] = plan.blend_columns[use, 1]
        for place, word in enumerate(plan.heat_words):
            columns[1 + index, list(word.tokens), 2 + place] = 1
    return columns


def routes_at(
    step: int, plans: Sequence[TargetPlan], columns: Tensor, layers: Layers
) -> AttentionRoutes:
    """The routes of [source, targets..] at one step; the source's row carries the identity.

    Conditional rows alone; where mutual self-attention acts, unconditional rows before them.
    """
    rows, length, count = columns.shape
    identity = AttentionRoutes.identity(
        rows, length, count, len(layers.self_downscales), len(layers.cross_downscales)
    )
    borrowed = identity.self_queries.clone()
    gate, mix, keep = identity.cross_gate, identity.mix, identity.keep
    donors = torch.zeros(rows, dtype=torch.int64)
    for row, plan in enumerate(plans, start=1):
        alpha = plan.windows[step]
        strength = plan.weights * alpha
        mix[row] = plan.alignment.mapper * strength
        keep[row] = (1 - plan.alignment.shared) * strength + (1 - alpha)
        gate[:, row] = float(alpha.any())
        if step in plan.self_steps:
            borrowed[injected(layers), row] = 0
    made = AttentionRoutes(
        self_queries=borrowed,
        self_keys=borrowed.clone(),  # an exporter would merge two inputs that are one tensor
        self_values=identity.self_values,
        donors=donors,
        cross_gate=gate,
        mix=mix,
        keep=keep,
        words=columns,
    )
    mutual = {
        row: plan.edit.mutual
        for row, plan in enumerate(plans, start=1)
        if plan.edit.mutual is not None and step >= plan.edit.mutual.start_step
    }
    return with_mutual(made, mutual) if mutual else made


def injected(layers: Layers) -> list[int]:
    """Self-attention layers in which a target may take the source's queries and keys."""
    return [i for i, scale in enumerate(layers.self_downscales) if scale >= layers.injected_from]


def _windows(windows: Window | Mapping[str, Window], target: Tokens, steps: int) -> Tensor:
    alpha = torch.zeros(steps, len(target.ids))
    if not isinstance(windows, Mapping):
        windows = {DEFAULT: windows}
    inside = step_range(windows.get(DEFAULT, 0.8), steps)
    alpha[inside.start : inside.stop] = 1
    for name, window in windows.items():
        if name == DEFAULT:
            continue
        tokens = list(target.find(name))
        inside = step_range(window, steps)
        alpha[:, tokens] = 0
        alpha[inside.start : inside.stop, tokens] = 1
    return alpha


def _told_apart(words: Sequence[Word], target: Tokens) -> tuple[Word, ...]:
    """Each word once; one that stands again later in the prompt by its number, as in `red#2`."""
    told: dict[tuple[int, ...], Word] = {}
    for word in words:
        places = [w.tokens for w in target.words() if w.text.lower() == word.text.lower()]
        again = word.tokens in places[1:]
        name = f"{word.text}#{places.index(word.tokens) + 1}" if again else word.text
        told.setdefault(word.tokens, Word(name, word.tokens))
    return tuple(told.values())


def _differing(alignment: Alignment) -> Tensor:
    """1 at the tokens of words that differ: [2, L] for source and target.

    By token, not by name: the same word may stand elsewhere, unchanged.
    """
    columns = torch.zeros(2, len(alignment.shared))
    for place, words in enumerate(alignment.changed):
        for word in words:
            columns[place, list(word.tokens)] = 1
    return columns


def _named(names: Sequence[str], source: Tokens, target: Tokens) -> Tensor:
    """1 at the tokens of the named words: [2, L] for source and target.

    A name may be in one prompt alone (the swapped word); in neither raises ValueError.
    """
    columns = torch.zeros(2, len(source.ids))
    for name in names:
        found = False
        for place, tokens in enumerate((source, target)):
            try:
                columns[place, list(tokens.find(name))] = 1
                found = True
            except ValueError:
                continue
        if not found:
            raise ValueError(f"{name!r} is in neither prompt: {source.prompt!r}, {target.prompt!r}")
    return columns
