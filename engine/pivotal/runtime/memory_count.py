"""How many bytes a network allocates, counted without running it.

The network is run on fake tensors, which have shapes and no memory, and every storage that an
operation makes is added up until it is let go. So the count holds for any architecture, size and
dtype, and knows what autograd keeps. What an operation allocates inside itself is not seen but for
convolutions, which copy their picture and weights: a bound, as some do without.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationCount(TorchDispatchMode):
    """Counts the bytes of the storages that operations make: those that are live, and the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        copies = _copied(args) if func is torch.ops.aten.convolution.default else 0
        given = {_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and _key(made) not in given | self._known:
                self._add(made)
        self.peak = max(self.peak, self.live + copies)
        return out

    def _add(self, made: Tensor) -> None:
        storage, key = made.untyped_storage(), _key(made)
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _copied(args: Sequence[Any]) -> int:
    """A convolution's picture and weights, which it brings into a layout of its own first.

    Where there are more weights than pixels the copy is of the weights alone, once whatever the
    rows (at most 118 MB in Stable Diffusion's UNets), so it is not a row's and not counted.
    """
    picture, weights = args[:2]
    return int(picture.nbytes + weights.nbytes) if picture.nbytes > weights.nbytes else 0


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def faking() -> AbstractContextManager[Any]:
    """Tensors made within have no memory. (torch's FakeTensorMode, imported when needed.)"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def peak_bytes(run: Callable[[], object]) -> int:
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
