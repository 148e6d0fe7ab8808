"""What an inversion method is to the rest: a pair of algorithms, and what to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from pivotal.errors import InversionFileError
from pivotal.query import Algorithm, Conditioning
from pivotal.schedule import Schedule

from .base import Inverted


@dataclass(frozen=True)
class Method:
    """A pair `invert` and `replay`, and the facts about it.

    `invert(schedule, latents, conditioning, null, options)` returns `Inverted`;
    `replay(schedule, inverted, conditioning, null, guidance_scale, control, options)` returns
    latents. options: the same typed ones for both.
    """

    name: str
    title: str
    paper: str
    rows: str  # UNet rows an image, forward
    stores: str
    guidance: tuple[float, float]  # the guidance scales, lowest and highest, that it suits
    invert: Callable[..., Algorithm[Inverted]]
    replay: Callable[..., Algorithm[Tensor]]
    options: type
    needs: frozenset[type]  # the query types it asks, whatever its options
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name to its shape, less B
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # stored on request
    fits_guidance: bool = False  # its options hold the guidance scale it is fitted for
    uses_null: bool = True  # its replay is guided away from the empty or negative prompt
    # Of typed options: the query types that they ask besides.
    needs_more: Callable[[Any], frozenset[type]] = lambda options: frozenset()
    # Of a model's schedule and typed options: the schedule whose levels `replay` goes through.
    grid: Callable[[Schedule, Any], Schedule] = lambda schedule, options: schedule
    # Of typed options and the schedule's steps: the first step that `replay` runs.
    first_step: Callable[[Any, int], int] = lambda options, steps: 0

    def needed(self, options: Any) -> frozenset[type]:
        """The query types that it asks with these typed options."""
        return self.needs | self.needs_more(options)

    def check(self, inverted: Inverted, steps: int, conditioning: Conditioning) -> None:
        """Raise InversionFileError unless what is stored is what this method's replay needs.

        Dimensions: "steps", "levels" (one more), "latents" (C, h, w), "length" and "width" of the
        conditioning, "pooled" (width of the pooled vector, 0 without one).
        """
        length, width = conditioning.hidden_states.shape[1:]
        sizes: dict[str, tuple[int, ...]] = {
            "steps": (steps,),
            "levels": (steps + 1,),
            "latents": tuple(inverted.noise.shape[1:]),
            "length": (length,),
            "width": (width,),
            "pooled": (0 if conditioning.pooled is None else conditioning.pooled.shape[1],),
        }
        asked = {name: dims for name, dims in self.optional.items() if name in inverted.stored}
        for name, dimensions in {**self.stored, **asked}.items():
            shape = [inverted.noise.shape[0]]
            for dimension in dimensions:
                shape.extend(sizes[dimension])
            found = inverted.stored.get(name)
            if found is None or list(found.shape) != shape:
                raise InversionFileError(
                    f"a {self.name} inversion of {steps} steps stores {name} {shape}; this one has "
                    f"{'none' if found is None else list(found.shape)}; invert the image again"
                )

    def options_from(self, given: Mapping[str, Any]) -> Any:
        """Typed options from names and values.

        Raises ValueError for an unknown name or a wrong value.
        """
        known = {each.name: each for each in fields(self.options)}
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{self.name} has no option {name!r}; accepted are {', '.join(known)}"
                )
        return self.options(**{name: _read(known[name].type, name, given[name]) for name in given})


def _read(kind: Any, name: str, value: Any) -> Any:
    """A value as the option's type; text comes from a command line.

    `kind` is the annotation's text.
    """
    if kind.endswith(" | None"):
        if value is None or value == "none":
            return None
        kind = kind.removesuffix(" | None")
    if kind == "bool":
        return _truth(name, value)
    if kind not in ("float", "int"):
        return value
    reader = float if kind == "float" else int
    if isinstance(value, bool) or (kind == "int" and isinstance(value, float)):
        raise ValueError(f"option {name}={value!r} is not {kind}")
    try:
        number = reader(value)
        finite = math.isfinite(number)
    except (TypeError, ValueError):
        raise ValueError(f"option {name}={value!r} is not {kind}") from None
    except OverflowError:  # a whole number beyond any float
        finite = False
    if not finite:
        raise ValueError(f"option {name}={value!r} is not finite")
    return number


def _truth(name: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"option {name}={value!r} is not bool; accepted are true, false")
