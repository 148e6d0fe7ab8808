"""Which implementation of an op can serve which inputs: requirements as data, with reasons."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What a choice depends on."""

    device: str  # torch.device.type
    dtype: torch.dtype  # the values', or the latents'
    width: int | None = None  # head size

    def __str__(self) -> str:
        heads = "" if self.width is None else f" with heads of {self.width}"
        return f"{self.dtype} on {self.device}{heads}"


@dataclass(frozen=True)
class Requirement:
    """A condition on the inputs or the machine, and how to say it: "it needs ..."."""

    says: str
    met: Callable[[Facts], bool]


@dataclass(frozen=True)
class Backend:
    """run: the implementation; it is called with the op's own arguments."""

    run: Callable[..., Any]
    requirements: tuple[Requirement, ...] = ()

    def missing(self, facts: Facts) -> list[str]:
        """What these inputs lack, in words; empty where the backend fits."""
        return [need.says for need in self.requirements if not need.met(facts)]


def choose(
    op: str,
    impl: str,
    preference: tuple[str, ...],
    backends: Mapping[str, Backend],
    facts: Facts,
    *,
    argument: str = "impl",
) -> str:
    """The name of the backend to run: the one named, or for "auto" the first preferred that fits.

    Raises ValueError with every candidate's reasons if none fits, or if impl is unknown; argument
    is what the caller gave it as. Logs what "auto" took, so call it once for each kind of inputs.
    """
    if impl != "auto" and impl not in backends:
        accepted = ", ".join(["auto", *backends])
        raise ValueError(f"{argument}={impl!r} is unknown; accepted are {accepted}")
    candidates = preference if impl == "auto" else (impl,)
    reasons = []
    for name in candidates:
        missing = backends[name].missing(facts)
        if not missing:
            if impl == "auto":
                logger.info("%s for %s: %s", op, facts, name)
            return name
        reasons.append(f"{name} needs {' and '.join(missing)}")
    raise ValueError(f"{argument}={impl!r} does not fit {facts} in {op}: {'; '.join(reasons)}")


def installed(package: str) -> Requirement:
    """The package can be imported; it is not imported to find out."""
    return Requirement(f"the package {package}", lambda _: find_spec(package) is not None)


def one_of(*dtypes: torch.dtype) -> Requirement:
    """The dtype is one of these."""
    return Requirement(" or ".join(map(str, dtypes)), lambda facts: facts.dtype in dtypes)


def on_cuda() -> Requirement:
    return Requirement("a CUDA device", lambda facts: facts.device == "cuda")


def on_triton() -> Requirement:
    """A CUDA device; or the CPU under Triton's interpreter, which is for tests."""
    return Requirement(
        "a CUDA device (or the CPU with TRITON_INTERPRET=1, for tests)",
        lambda facts: (
            facts.device == "cuda"
            or (facts.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
        ),
    )


def heads_up_to(width: int) -> Requirement:
    return Requirement(
        f"heads of at most {width}", lambda facts: facts.width is None or facts.width <= width
    )
