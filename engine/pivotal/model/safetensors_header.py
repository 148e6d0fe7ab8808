"""A safetensors file's header, read and checked before any of the file is mapped.

The format (github.com/huggingface/safetensors): eight bytes of length, little endian; so many bytes
of JSON, tensor names to dtype, shape and offsets; and the tensors' bytes, without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotal.errors import ModelError

_LARGEST = 100_000_000  # bytes of a header, the format's own limit
_METADATA = "__metadata__"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it; `start` and `end` are bytes after the header."""

    dtype: str  # the format's name, as F16
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """raw: the JSON's bytes. tensors: by name. metadata: texts that the writer added."""

    raw: bytes
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Read and check a file's header against the file's size. Nothing is mapped.

    Raises ModelError for a file that is no safetensors file, a pickle among them, or not all of
    one, and for tensors of an unknown dtype, that overlap, or whose bytes do not fit their shape.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(size - 8, _LARGEST):
                raise ModelError(_no_header(path, start))
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}") from error
    try:
        parsed = json.loads(raw, object_pairs_hook=_without_repeats)
        metadata = {str(key): str(value) for key, value in parsed.pop(_METADATA, {}).items()}
        tensors = {name: _entry(name, told) for name, told in parsed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f": {error}" if isinstance(error, _Wrong) else ""
        raise ModelError(
            f"{path} has a damaged header; it is not a safetensors file{reason}"
        ) from None
    promised = 8 + length + _packed(path, tensors.values())
    if size != promised:
        raise ModelError(
            f"{path} has {size} bytes where its header promises {promised}; it is damaged: "
            "download or copy it again"
        )
    return Header(raw, tensors, metadata)


class _Wrong(ValueError):
    """What is wrong with an entry, in words."""


def _entry(name: str, told: Mapping[str, Any]) -> Entry:
    dtype, shape = told["dtype"], tuple(told["shape"])
    start, end = told["data_offsets"]
    if dtype not in _BITS:
        raise _Wrong(f"{name[:80]!r} has dtype {str(dtype)[:20]!r}")
    if not all(type(each) is int and each >= 0 for each in (*shape, start, end)):
        raise _Wrong(f"{name[:80]!r} has a shape or offsets that are no counts")
    if (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _Wrong(
            f"{name[:80]!r} has {end - start} bytes for shape {list(shape)[:8]} of {dtype}"
        )
    return Entry(dtype, shape, start, end)


def _packed(path: Path, entries: Iterable[Entry]) -> int:
    """The bytes of all tensors, which lie one after another. Raises ModelError if they don't."""
    reached = 0
    for entry in sorted(entries, key=lambda each: (each.start, each.end)):
        if entry.start != reached:
            raise ModelError(
                f"{path} has a damaged header: its tensors overlap or leave holes at byte {reached}"
            )
        reached = entry.end
    return reached


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Wrong("a name stands there twice")
    return made


def _no_header(path: Path, start: bytes) -> str:
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            f"{path} is not a safetensors file but a pickle, which can run code when opened; use a "
            "safetensors copy"
        )
    return f"{path} is not a safetensors file, or only a part of one"
