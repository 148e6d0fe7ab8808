"""The wish: what should change between a source prompt and a target prompt, and when."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .alignment import KINDS, Kind
from .masactrl import MutualSelfAttention

Window = float | tuple[float, float]
"""Fractions of the steps, noisiest first: (from, to), or the end alone."""

Preserve = Literal["none", "latent", "pixel"]

MAX_FEATHER = 512
"""In pixels. Wider than that nothing would be left of most masks."""

DEFAULT = "default"
"""The key of all words that a mapping of windows does not name."""


@dataclass(frozen=True)
class Edit:
    """A Prompt-to-Prompt edit of one target. Defaults are the paper's implementation's.

    kind: "auto" chooses swap or refinement from the prompts. cross_replace_steps: when target
    tokens take the source's cross-attention; a mapping gives words windows of their own.
    self_replace_steps: when self-attention is the source's, in layers of at most half the latents'
    side (in all of the bundled model's). weights: factors on the attention of target words, also
    negative. blend: words whose attention bounds the change (LocalBlend), "auto" for those that
    differ, () for none; names may be of either prompt. subtract: words whose region is left out of
    it. mask: [H, W] bool, where the inverted picture, as it was fitted to the model, may change.
    mask_words: where these words of the source look in a plain reconstruction, which is made first;
    with a mask, their meet. mask_with_blend: "and" lets change happen where both mask and blend
    allow it, "or" where either does; before the blend starts, it allows all. feather: the width in
    pixels, inside and outside of the edge, over which what may change fades to what may not.
    preserve: what is put back outside: "latent", the source's latents after each step; "pixel",
    the picture's own pixels as well, at the end; "none", nothing, and decibels are measured there.
    mutual: MasaCtrl, beside or (with both windows 0) in place of the source's layout.

    null_text_steps: when the target is guided away from the null embedding fitted to the source,
    as in the paper of null-text inversion; at other steps from the empty prompt, as after direct
    inversion. A fitted one predicts nearly what the source's prompt does, so guidance away from it
    exaggerates what is new. For inversions that fitted one.
    """

    target: str
    kind: Literal["auto"] | Kind = "auto"
    cross_replace_steps: Window | Mapping[str, Window] = 0.8
    self_replace_steps: Window = 0.4
    weights: Mapping[str, float] = field(default_factory=dict)
    blend: Literal["auto"] | tuple[str, ...] = ()
    subtract: tuple[str, ...] = ()
    blend_threshold: float = 0.3
    subtract_threshold: float = 0.3
    blend_start: float = 0.2
    mask: Tensor | None = field(default=None, compare=False)
    mask_words: tuple[str, ...] = ()
    mask_with_blend: Literal["and", "or"] = "and"
    feather: float = 0.0
    preserve: Preserve = "latent"
    mutual: MutualSelfAttention | None = None
    null_text_steps: Window = 1.0

    def __post_init__(self) -> None:
        """Lists of words become tuples. Raises ValueError."""
        if not isinstance(self.target, str):
            raise ValueError(f"target={self.target!r}; a prompt is expected")
        for name in ("blend", "subtract", "mask_words"):
            self._check_words(name)
        if self.kind not in ("auto", *KINDS):
            raise ValueError(
                f"kind={self.kind!r} is unknown; accepted are auto, {', '.join(KINDS)}"
            )
        windows = self.cross_replace_steps
        for window in windows.values() if isinstance(windows, Mapping) else (windows,):
            bounds(window)
        bounds(self.self_replace_steps)
        bounds(self.null_text_steps)
        if not isinstance(self.weights, Mapping):
            raise ValueError(f"weights={self.weights!r}; a mapping of words to factors is expected")
        for word, factor in self.weights.items():
            largest = sys.float_info.max  # whole numbers may be beyond any float
            if not _is_number(factor) or not abs(factor) <= largest:
                raise ValueError(f"weight {word}={factor}; a finite factor is expected")
        for name in ("blend_threshold", "subtract_threshold", "blend_start"):
            fraction = getattr(self, name)
            if not _is_number(fraction) or not 0 <= fraction <= 1:
                raise ValueError(f"{name}={fraction!r}; a fraction from 0 to 1 is expected")
        _check_mask(self.mask)
        if not isinstance(self.mutual, MutualSelfAttention | None):
            raise ValueError(f"mutual={self.mutual!r}; MutualSelfAttention or None is expected")
        if self.subtract and not self.blend:
            raise ValueError(
                "subtract words take a region out of blend's; name words to blend as well"
            )
        self._check_region()

    def _check_region(self) -> None:
        masked = self.mask is not None or bool(self.mask_words)
        if not _is_number(self.feather) or not 0 <= self.feather <= MAX_FEATHER:
            raise ValueError(
                f"feather={self.feather!r}; pixels from 0 to {MAX_FEATHER} are possible"
            )
        if self.mask_with_blend not in ("and", "or"):
            raise ValueError(f"mask_with_blend={self.mask_with_blend!r}; accepted are and, or")
        if self.preserve not in get_args(Preserve):
            raise ValueError(
                f"preserve={self.preserve!r} is unknown; accepted are "
                f"{', '.join(get_args(Preserve))}"
            )
        if self.mask_with_blend == "or" and not (masked and self.blend):
            raise ValueError("mask_with_blend='or' joins a mask and a blend; give both")
        for name, used in (
            ("blend_threshold", self.blend or self.mask_words),
            ("subtract_threshold", self.subtract),
            ("blend_start", self.blend),
        ):
            if not used and getattr(self, name) != getattr(Edit, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} does nothing without words to "
                    f"{name.partition('_')[0]}; name them or leave it out"
                )
        if (self.feather or self.preserve != "latent") and not (masked or self.blend):
            raise ValueError(
                f"feather={self.feather:g} and preserve={self.preserve!r} are about the outside of "
                "a mask or blend; give one"
            )

    def _check_words(self, name: str) -> None:
        words = getattr(self, name)
        if name == "blend" and words == "auto":
            return
        if not isinstance(words, tuple | list) or not all(isinstance(each, str) for each in words):
            accepted = "a tuple of words or 'auto'" if name == "blend" else "a tuple of words"
            raise ValueError(f"{name}={words!r}; give {accepted}")
        object.__setattr__(self, name, tuple(words))


def _check_mask(mask: Tensor | None) -> None:
    """Raises ValueError for what is neither [H, W] bool nor None."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"mask is of type {type(mask).__name__}; a tensor [H, W] of torch.bool is expected"
        )
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(
            f"mask has shape {list(mask.shape)} and {mask.dtype}; [H, W] and torch.bool are "
            "expected"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def bounds(window: Window) -> tuple[float, float]:
    """(from, to) as fractions. Raises ValueError outside 0 <= from <= to <= 1."""
    pair: tuple[Any, ...] = window if isinstance(window, tuple) else (0.0, window)
    if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 <= pair[0] <= pair[1] <= 1:
        raise ValueError(
            f"window {window!r}; fractions of the steps, 0 <= from <= to <= 1, are expected"
        )
    return pair[0], pair[1]


def step_range(window: Window, steps: int) -> range:
    """The steps inside a window; step 0 is the noisiest.

    0.3 of 10 steps is 3 in spite of rounding.
    """
    start, end = bounds(window)
    return range(int(start * steps + 1e-9), int(end * steps + 1e-9))
