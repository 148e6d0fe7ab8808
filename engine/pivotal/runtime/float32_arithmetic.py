"""How a GPU multiplies float32 matrices: exactly, or in TF32, as was asked and for us alone.

torch's own defaults differ: matrices exactly, convolutions in TF32. They are flags of the process,
so they are set while the network runs and put back after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

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
    """Float32 matrices and convolutions on CUDA in TF32, or exactly, for all threads. The flags
    before come back, whether they were set as `allow_tf32` or as `fp32_precision`.

    Threads that ask for the same share the flags; one that asks for the other waits for them.
    Inside another of the same thread the outer one's hold.
    """
    with _FLAGS.held(tf32):
        yield


class _Flags:
    """The flags of the process, which threads share: the first sets them, the last puts them
    back.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: list[int] = []  # threads, once for each of their contexts
        self._tf32 = False
        self._restore: Callable[[], None] = _nothing

    @contextmanager
    def held(self, tf32: bool) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(
                lambda: me in self._holders or not self._holders or self._tf32 == tf32
            )
            if not self._holders:
                self._tf32, self._restore = tf32, _set_flags(tf32)
            self._holders.append(me)
        try:
            yield
        finally:
            with self._changed:
                self._holders.remove(me)
                if not self._holders:
                    self._restore()
                self._changed.notify_all()


def _nothing() -> None:
    pass


# They are one in a process, so who holds them is too.
_FLAGS = _Flags()


def _set_flags(tf32: bool) -> Callable[[], None]:
    """Set them; what puts them back."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    old, new = (matmul, cudnn), (matmul, cudnn.conv, cudnn.rnn)
    before_old = [_allow_tf32(place) for place in old]
    before_new = [place.fp32_precision for place in new]
    # Both, and the old ones first, which write the new: torch refuses to read the old where they
    # disagree, and its compiler reads them.
    _set(old, "allow_tf32", [tf32] * len(old))
    _set(new, "fp32_precision", ["tf32" if tf32 else "ieee"] * len(new))

    def restore() -> None:
        _set(old, "allow_tf32", before_old)
        _set(new, "fp32_precision", before_new)

    return restore


def _allow_tf32(place: Any) -> bool | None:
    """None where an application has set `fp32_precision`, and torch refuses to say."""
    try:
        allowed: bool = place.allow_tf32
    except RuntimeError:
        return None
    return allowed


def _set(places: Sequence[Any], name: str, values: Sequence[Any]) -> None:
    for place, value in zip(places, values, strict=True):
        if value is not None:
            setattr(place, name, value)
