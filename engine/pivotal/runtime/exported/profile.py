"""For which shapes an export is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_SPAN = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")


@dataclass(frozen=True)
class Span:
    """From `low` to `high`, both included: one number is static, more are dynamic."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"{self} is no span; 1 <= low <= high is expected")

    def __str__(self) -> str:
        return str(self.low) if self.static else f"{self.low}:{self.high}"

    def __contains__(self, value: int) -> bool:
        return self.low <= value <= self.high

    @property
    def static(self) -> bool:
        return self.low == self.high

    @classmethod
    def parse(cls, text: str) -> Span:
        """`"4"` or `"1:16"`. Raises ValueError for anything else."""
        match = _SPAN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no span; a number as 4, or low:high as 1:16, is expected"
            )
        return cls(int(match[1]), int(match[2] or match[1]))


@dataclass(frozen=True)
class ShapeProfile:
    """rows: of a UNet batch. height, width: of the picture in pixels."""

    rows: Span
    height: Span
    width: Span

    def require_multiples(self, scale: int, unit: int) -> None:
        """Raise ValueError for sizes that the network can't be exported for.

        scale: pixels per latent. unit: pixels per entry of the UNet's coarsest level: with a size
        that varies, the skip connections fit for its multiples alone.
        """
        for name, span in (("height", self.height), ("width", self.width)):
            step = scale if span.static else unit
            if span.low % step or span.high % step:
                raise ValueError(f"{name}={span}: multiples of {step} pixels are possible")

    def require(
        self, rows: int, height: int, width: int, again: Callable[[ShapeProfile], str]
    ) -> None:
        """Raise ValueError for a batch outside the profile. again: the command that exports anew,
        for a profile.
        """
        asked = {"rows": (rows, self.rows), "height": (height, self.height)}
        for name, (value, span) in {**asked, "width": (width, self.width)}.items():
            if value not in span:
                wider = replace(self, **{name: Span(min(span.low, value), max(span.high, value))})
                raise ValueError(
                    f"{name}={value} is outside the export's profile, {name} {span}; "
                    f"export again with a wider one: {again(wider)}"
                )

    def record(self) -> dict[str, str]:
        return {"rows": str(self.rows), "height": str(self.height), "width": str(self.width)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ShapeProfile:
        return cls(**{name: Span.parse(str(record[name])) for name in ("rows", "height", "width")})
