"""Arithmetic on prompts' embeddings: between two prompts, and token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pivotal.query import Conditioning

Path = Literal["linear", "spherical"]


def interpolate(
    first: Conditioning,
    second: Conditioning,
    amount: float,
    *,
    path: Path = "linear",
    tokens: Sequence[int] | None = None,
) -> Conditioning:
    """From `first` (amount 0) to `second` (amount 1), also beyond; B rows each.

    path: "linear", or "spherical" along the great circle, token by token, lengths linear. tokens:
    positions that move, all of them (and SDXL's pooled vector) if None. Raises ValueError for an
    unknown path, an infinite amount, embeddings of different shapes and positions that are not
    there.
    """
    if path not in ("linear", "spherical"):
        raise ValueError(f"path={path!r} is unknown; accepted are linear, spherical")
    if not math.isfinite(amount):
        raise ValueError(f"amount={amount}; a finite number is expected")
    start, end = first.hidden_states, second.hidden_states
    if start.shape != end.shape:
        raise ValueError(
            f"prompts of shapes {list(start.shape)} and {list(end.shape)} have nothing between them"
        )
    between = _between(start, end, amount, path)
    if tokens is not None:
        places = list(_checked(tokens, start.shape[1]))
        moved = start.clone()
        moved[:, places] = between[:, places]
        return replace(first, hidden_states=moved)
    pooled = first.pooled
    if pooled is not None and second.pooled is not None:
        pooled = _between(pooled, second.pooled, amount, path)
    return replace(first, hidden_states=between, pooled=pooled)


def swap_tokens(
    conditioning: Conditioning, other: Conditioning, places: Mapping[int, int]
) -> Conditioning:
    """Vectors of some tokens taken from another prompt: place here to place there. B rows each."""
    length = conditioning.hidden_states.shape[1]
    here = list(_checked(list(places), length))
    there = list(_checked(list(places.values()), other.hidden_states.shape[1]))
    moved = conditioning.hidden_states.clone()
    moved[:, here] = other.hidden_states[:, there]
    return replace(conditioning, hidden_states=moved)


def scale_token(
    conditioning: Conditioning, token: int | Sequence[int], factor: float
) -> Conditioning:
    """The vector of a token (or of each of several: a word's) times a factor, also negative."""
    tokens = [token] if isinstance(token, int) else token
    moved = conditioning.hidden_states.clone()
    moved[:, list(_checked(tokens, moved.shape[1]))] *= factor
    return replace(conditioning, hidden_states=moved)


def _between(start: Tensor, end: Tensor, amount: float, path: Path) -> Tensor:
    """Vectors [.., D] between two; where they point the same way the great circle is a line."""
    straight = torch.lerp(start, end, amount)
    if path == "linear":
        return straight
    near, far = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(start.dtype).tiny
    first, second = start / near.clamp(min=tiny), end / far.clamp(min=tiny)
    cosine = (first * second).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    flat = (sine < 1e-4) | (near * far == 0)
    safe = torch.where(flat, 1.0, sine)
    around = (torch.sin((1 - amount) * angle) * first + torch.sin(amount * angle) * second) / safe
    return torch.where(flat, straight, torch.lerp(near, far, amount) * around)


def _checked(tokens: Sequence[int], length: int) -> Sequence[int]:
    for token in tokens:
        if not 0 <= token < length:
            raise ValueError(f"token {token} is not there; 0 to {length - 1} are")
    return tokens
