"""How many bytes a network allocates, counted without running it.

The network is run on fake tensors, which have shapes and no memory, and every storage that an
operation makes is added up until it is let go. So the count holds for any architecture, size and
dtype, and knows what autograd keeps. What an operation allocates inside itself is not seen but for
convolutions, which bring their picture and weights into a layout of their own: a bound, as some do
without.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIED = 20480  # elements: torch's CPU convolves fewer, of a single row, without a copy


class Moment(NamedTuple):
    """Bytes at one moment: of each row, and once for all of at least so many rows."""

    each: int
    once: int
    least: int


@dataclass(frozen=True)
class Peak:
    """The most bytes at once, by how many rows run: what they allocate adds up, but a copy of
    weights is made once for all.
    """

    moments: tuple[Moment, ...]

    def __call__(self, rows: int) -> int:
        return max(rows * each + once for each, once, least in self.moments if rows >= least)

    @property
    def row(self) -> int:
        """What each of many rows takes."""
        return max(moment.each for moment in self.moments)

    def within(self, allowed: int) -> int:
        """How many rows so many bytes are enough for."""
        return min(max((allowed - once) // each, least - 1) for each, once, least in self.moments)

    def __or__(self, other: Peak) -> Peak:
        """Of doing either."""
        return Peak((*self.moments, *other.moments))


class AllocationCount(TorchDispatchMode):
    """Counts the bytes of the storages that operations make: those that are live, and the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self._most: dict[tuple[int, int], int] = {}  # live bytes, by the copy beside them
        self._known: set[int] = set()

    @property
    def peak(self) -> Peak:
        """For as many copies of what ran. The copies of different weights are told apart."""
        return Peak(tuple(Moment(live, *copy) for copy, live in self._most.items()))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and _key(made) not in given | self._known:
                self._add(made)
        self._note(self.live, 0, 1)
        if func is torch.ops.aten.convolution.default:
            picture, weights = args[:2]
            least = 1 if picture.numel() > _COPIED else 2
            self._note(self.live + picture.nbytes, weights.nbytes, least)
        return out

    def _note(self, live: int, once: int, least: int) -> None:
        self._most[once, least] = max(live, self._most.get((once, least), 0))

    def _add(self, made: Tensor) -> None:
        storage, key = made.untyped_storage(), _key(made)
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def faking() -> AbstractContextManager[Any]:
    """Tensors made within have no memory. (torch's FakeTensorMode, imported when needed.)"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def peak_bytes(run: Callable[[], object]) -> Peak:
    """The most bytes that `run` has allocated at once. It must run on fake tensors."""
    count = AllocationCount()
    with count:
        run()
    return count.peak


def filled(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A network of the meta device with fake weights instead, inside `faking`."""

    def fake(tensor: Tensor) -> Tensor:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=wanted)

    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(fake(parameter), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake(buffer))
    return network.eval()


def weight_bytes(network: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Of parameters and buffers, in the given dtype or their own."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(
        each.numel() * (dtype.itemsize if dtype and each.is_floating_point() else each.itemsize)
        for each in tensors
    )
