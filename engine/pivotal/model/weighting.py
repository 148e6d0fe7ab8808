"""Weighted prompts, `a (red:1.3) circle`: read by A1111's grammar, applied as ComfyUI does.

Off unless asked for: otherwise brackets and colons are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from pivotal.tokens import Tokens

_LARGEST = 10.0
_PLAIN = 1.1  # what brackets without a number mean
_ESCAPED = "()\\:"
_CLOSING = re.compile(r":\s*([+-]?[\d.]+)\s*\)")


def read_weights(prompt: str) -> tuple[str, list[float]]:
    """The text without the syntax, and the weight of each of its characters.

    `(words:1.3)` weighs words, `(words)` by 1.1; nested weights multiply. A backslash before a
    bracket, a colon or a backslash makes it text. Square brackets are text. Raises ValueError for
    brackets that do not pair, and for weights outside 0 to 10.
    """
    text: list[str] = []
    weights: list[float] = []
    opened: list[tuple[int, int]] = []  # places in the prompt and in the text
    at = 0
    while at < len(prompt):
        character, closing = prompt[at], _CLOSING.match(prompt, at)
        if character == "\\" and prompt[at + 1 : at + 2] in tuple(_ESCAPED):
            text.append(prompt[at + 1])
            weights.append(1.0)
            at += 2
        elif character == "(":
            opened.append((at, len(text)))
            at += 1
        elif character == ")" or (closing and opened):
            if not opened:
                raise _unpaired(prompt, at)
            _, start = opened.pop()
            factor = _weight(closing.group(1)) if closing else _PLAIN
            weights[start:] = [weight * factor for weight in weights[start:]]
            at = closing.end() if closing else at + 1
        else:
            text.append(character)
            weights.append(1.0)
            at += 1
    if opened:
        raise _unpaired(prompt, opened[-1][0])
    return "".join(text), weights


def token_weights(tokens: Tokens, weights: Sequence[float]) -> tuple[float, ...]:
    """Of each token [L]: the mean of its characters', 1 for start, end and padding."""
    return tuple(
        1.0
        if span is None or span[0] == span[1]
        else sum(weights[slice(*span)]) / (span[1] - span[0])
        for span in tokens.spans
    )


def weighted(hidden: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """`empty + w (hidden - empty)`, ComfyUI's rule: 0 says nothing, 1 changes no bit, more says
    more. (A1111 multiplies hidden states and rescales them to their former mean, which is near 0
    for some encoders and then says little; here a token depends on its own weight alone.)

    hidden: [B, L, D] float32 of one encoder. empty: [1, L, D], the empty prompt's. weights: [B, L].
    """
    scaled = empty + weights[..., None] * (hidden - empty)
    return torch.where(weights[..., None] == 1, hidden, scaled)


def _weight(number: str) -> float:
    try:
        found = float(number)
    except ValueError:
        found = -1.0
    if not 0 <= found <= _LARGEST:
        raise ValueError(
            f"the weight {number!r} in the prompt is none from 0 to {_LARGEST:g}; write \\: for a "
            "colon that is text"
        )
    return found


def _unpaired(prompt: str, at: int) -> ValueError:
    return ValueError(
        f"the bracket at {prompt[at : at + 20]!r} in the weighted prompt has no partner; write "
        f"\\{prompt[at]} for one that is text"
    )
