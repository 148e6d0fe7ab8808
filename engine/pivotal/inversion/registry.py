"""All inversion methods by name, with what a user and a planner need to know of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from pivotal.errors import InversionFileError
from pivotal.query import Algorithm, Conditioning, Denoise, NoiseGradient

from . import ddim, null_text
from .base import Inverted


@dataclass(frozen=True)
class Method:
    """A pair `invert` and `replay`, and the facts about it."""

    name: str
    title: str
    paper: str
    rows: str  # UNet rows an image, forward
    stores: str
    invert: Callable[..., Algorithm[Inverted]]
    replay: Callable[..., Algorithm[Tensor]]
    options: type
    needs: frozenset[type]  # the query types it asks
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name to its shape, less B
    fits_guidance: bool = False  # its options hold the guidance scale it is fitted for

    def check(self, inverted: Inverted, steps: int, conditioning: Conditioning) -> None:
        """Raise InversionFileError unless what is stored is what this method's replay needs."""
        length, width = conditioning.hidden_states.shape[1:]
        sizes = {"steps": steps, "length": length, "width": width}
        for name, dimensions in self.stored.items():
            shape = [inverted.noise.shape[0], *(sizes[dimension] for dimension in dimensions)]
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


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="ddim",
            title="DDIM inversion",
            paper="arXiv:2010.02502",
            rows="steps",
            stores="the noise",
            invert=ddim.invert,
            replay=ddim.replay,
            options=ddim.DDIMOptions,
            needs=frozenset({Denoise}),
        ),
        Method(
            name="null-text",
            title="Null-text inversion",
            paper="arXiv:2211.09794",
            rows="at most steps * (1 + 1 + inner_steps) + steps",
            stores="the noise and a null embedding for each step",
            invert=null_text.invert,
            replay=null_text.replay,
            options=null_text.NullTextOptions,
            needs=frozenset({Denoise, NoiseGradient}),
            stored={"null_embeddings": ("steps", "length", "width")},
            fits_guidance=True,
        ),
    )
}


def method_named(name: str) -> Method:
    """Raises ValueError naming the accepted methods."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; accepted are {', '.join(METHODS)}")
    return METHODS[name]


def _read(kind: Any, name: str, value: Any) -> Any:
    """A value as the option's type; text comes from a command line.

    `kind` is the annotation's text.
    """
    if kind not in ("float", "int"):
        return value
    reader = float if kind == "float" else int
    if isinstance(value, bool) or (kind == "int" and isinstance(value, float)):
        raise ValueError(f"option {name}={value!r} is not {kind}")
    try:
        number = reader(value)
    except (TypeError, ValueError):
        raise ValueError(f"option {name}={value!r} is not {kind}") from None
    if not math.isfinite(number):
        raise ValueError(f"option {name}={value!r} is not finite")
    return number
