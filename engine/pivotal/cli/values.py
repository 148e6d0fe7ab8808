"""Texts from the command line as values. Each raises ValueError, naming the option and the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `512x768`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})\s*[x×]\s*(\d{1,6})", text.strip())
    if not match or not all(map(int, match.groups())):
        raise ValueError(f"--size {text!r}: write height and width in pixels, as 512x768")
    return int(match[1]), int(match[2])


def picture_size(text: str | None) -> tuple[int, int] | Literal["source"] | None:
    """(height, width) of `512x768`, or `source`."""
    if text is not None and text.strip() == "source":
        return "source"
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{error}, or `source` for the picture's own size") from None


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str, option: str = "--max-size") -> int:
    """Bytes of `500MB`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        raise ValueError(f"{option} {text!r}: write a size as 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def named(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts as a mapping."""
    values: dict[str, str] = {}
    for text in given or ():
        name, found, value = text.rpartition("=")
        if not found or not name:
            raise ValueError(f"--{option} {text!r}: write name=value")
        if name in values:
            raise ValueError(f"--{option} {name} is given twice")
        values[name] = value
    return values


def numbers(given: Sequence[str] | None, option: str) -> dict[str, float]:
    """`name=number` texts as a mapping."""
    values = {}
    for name, value in named(given, option).items():
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"--{option} {name}={value}: {value!r} is not a number") from None
    return values


def prompt_text(text: str, option: str) -> str:
    """A prompt that says something. Raises ValueError for an empty one."""
    if not text.strip():
        raise ValueError(f"{option} is empty; say in a few words what the picture shows")
    return text


def parse_loss(text: str) -> tuple[str, Any]:
    """Kind and value of `blue:0.9`, `image:FILE` or `image`; a channel's level is 0.9 if unsaid."""
    kind, _, value = text.partition(":")
    if kind == "image":
        return kind, value
    if kind not in ("red", "green", "blue"):
        raise ValueError(f"--loss {text!r}: write blue:0.9, red:0.9, green:0.9 or image:FILE")
    try:
        level = float(value) if value else 0.9
    except ValueError:
        level = -1.0
    if not 0 <= level <= 1:
        raise ValueError(f"--loss {text!r}: {value!r} is no level from 0 to 1")
    return kind, level


def parse_blend(text: str) -> tuple[str, float]:
    """Prompt and amount of `a blue square=0.5`."""
    prompt, _, amount = text.rpartition("=")
    try:
        return prompt_text(prompt, "--prompt-blend"), float(amount)
    except ValueError:
        raise ValueError(
            f"--prompt-blend {text!r}: write PROMPT=AMOUNT, such as 'a blue square=0.5'"
        ) from None
