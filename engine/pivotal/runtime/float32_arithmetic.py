"""How a GPU multiplies float32 matrices: exactly, or in TF32, as was asked and for us alone.

torch's own defaults differ: matrices exactly, convolutions in TF32. They are flags of the process,
so they are set while the network runs and put back after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pivotal.driver import Denoiser
from pivotal.query import Answer, Query


class Float32Arithmetic:
    """A denoiser whose float32 networks run with these flags, on a CUDA device."""

    def __init__(self, inner: Denoiser, *, tf32: bool) -> None:
        self.inner = inner
        self.tf32 = tf32

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def answers(self) -> frozenset[type]:
        return self.inner.answers

    def __getattr__(self, name: str) -> Any:
        """What else the inner denoiser has: its counters, its device."""
        return getattr(self.__dict__["inner"], name)

    def answer(self, query: Query) -> Answer:
        with float32_arithmetic(tf32=self.tf32):
            return self.inner.answer(query)


@contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Float32 matrices and convolutions on CUDA in TF32, or exactly. The flags before come back."""
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = tf32
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
