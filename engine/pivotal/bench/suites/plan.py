"""What a run measures on: the model, the device, and how much of each suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from pivotal.bench.cases import Prepared
from pivotal.engine import Engine
from pivotal.model.load import device_of
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.precision import precision_of

PROMPT = "a red star on a gray background"
TARGETS = (
    "a blue star on a gray background",
    "a green star on a gray background",
    "a yellow star on a gray background",
    "a red circle on a gray background",
    "a red square on a gray background",
    "a red cross on a gray background",
    "a red ring on a gray background",
    "a red triangle on a gray background",
)


@dataclass(frozen=True)
class Plan:
    """model, device, dtype: as `Engine.load` takes them, and refused as there. steps: of inversions
    and edits. quick: few cases. exported: where `pivotal export` wrote this model, to be timed
    beside torch. size: the network's pictures, height and width in pixels; the model's own if None.
    compile: as `Engine.load` takes it, for all that an engine does; the network is timed both ways.
    """

    model: str = "shapes"
    device: str = "cpu"
    dtype: str = "float32"
    steps: int = 10
    quick: bool = True
    exported: Path | None = None
    size: tuple[int, int] | None = None
    compile: bool | CompileOptions = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}; at least 1 is expected")
        precision_of(self.dtype).require_device(self.torch_device)

    @property
    def engine(self) -> Engine:
        """Loaded when a case is first prepared; shared by all that ask for this dtype."""
        return self.compiled if self.compile else self.eager

    @cached_property
    def eager(self) -> Engine:
        return replace(self, compile=False).loaded()

    @cached_property
    def compiled(self) -> Engine:
        """With weights of its own, which a compiled network lays out in its own way."""
        return replace(self, compile=self.compile or True).loaded()

    def loaded(self, **more: Any) -> Engine:
        """A new engine. more: as `Engine.load` takes it."""
        return Engine.load(
            self.model, device=self.device, dtype=self.dtype, compile=self.compile, **more
        )

    def prepared(
        self, run: Callable[[Engine], Any], check: Callable[[Any], Mapping[str, Any]], **more: Any
    ) -> Prepared:
        """A case of what an engine does: compiled first and counted eagerly where that is asked.

        more: as `Prepared` takes it.
        """
        if not self.compile:
            return Prepared(lambda: run(self.eager), check, **more)
        more = {"compile": lambda: run(self.compiled), "eager": lambda: run(self.eager)} | more
        return Prepared(lambda: run(self.compiled), check, **more)

    @property
    def random(self) -> bool:
        """Random weights: speed means something, quality does not."""
        return self.model.startswith("random:")

    @property
    def torch_device(self) -> torch.device:
        return device_of(self.device)


def picture() -> Path:
    """The drawn scene that ships with the package."""
    return Path(str(resources.files("pivotal") / "bundled/pictures/scene.png"))
