"""What a call must do at least: FLOPs and bytes counted from the operations that it really runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counted:
    """A call's work.

    flops: of matrix products, convolutions and attention, 2 a multiply-add. moved_bytes: what
    operations run one by one read and write. least_bytes: each input and weight read once, each
    result written once, as if a cache held the rest.
    """

    flops: int
    moved_bytes: int
    least_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches: FLOP/s of a large matrix product, bytes/s of a large copy."""

    flops_per_second: float
    bytes_per_second: float

    def least_seconds(self, work: Counted) -> float:
        """No implementation of the same operations is faster (Williams et al. 2009, roofline)."""
        arithmetic = work.flops / self.flops_per_second
        return max(arithmetic, work.least_bytes / self.bytes_per_second)


def count(run: Callable[[], Any]) -> Counted:
    """Run it once and count. What a compiled or exported network does inside is not seen."""
    counting = Counting()
    with counting:
        kept = run()
    traffic = counting.traffic
    results = sum(_bytes(each) for each in _tensors(kept))
    least = traffic.read_first + results
    return Counted(counting.flops.get_total_flops(), sum(traffic.moved.values()), least)


class Counting:
    """A context that counts what runs inside it, by the part that `part` names at the time."""

    def __init__(self, part: Callable[[], str] = lambda: _WHOLE) -> None:
        self.traffic = _Traffic(part)
        self.flops = FlopCounterMode(display=False, custom_mapping=_attention_flops())
        self.flops.mod_tracker = _Parts(part)  # type: ignore[assignment]

    def __enter__(self) -> None:
        self.flops.__enter__()
        self.traffic.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.traffic.__exit__(*error)
        self.flops.__exit__(*error)

    def by_part(self) -> dict[tuple[str, str], Counted]:
        """By part and the operation's kind. Least bytes are all that operations read and write."""
        work: dict[tuple[str, str], int] = {}
        for place, operations in self.flops.flop_counts.items():
            for operation, done in operations.items():
                key = (place, kind_of(str(operation)))
                work[key] = work.get(key, 0) + done
        return {
            key: Counted(work.get(key, 0), moved, moved)
            for key, moved in self.traffic.moved.items()
        }


def kind_of(operation: str) -> str:
    """What an operation is to a reader: convolution, attention, product, norm, or the rest."""
    for kind, words in _KINDS.items():
        if any(word in operation for word in words):
            return kind
    return "rest"


_WHOLE = "Global"  # where torch's counter keeps what all modules do
_KINDS = {
    "convolution": ("conv",),
    "attention": ("attention",),
    "product": ("mm", "linear"),
    "norm": ("norm",),
}


class _Parts:
    """In place of torch's tracker of modules, whose hooks fail under `autograd.grad`."""

    def __init__(self, part: Callable[[], str]) -> None:
        self._part = part

    @property
    def parents(self) -> set[str]:
        return {_WHOLE, self._part()}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _Traffic(TorchDispatchMode):
    """Sums the bytes of every operation's tensors; views move nothing."""

    def __init__(self, part: Callable[[], str]) -> None:
        super().__init__()
        self._part = part
        self.moved: dict[tuple[str, str], int] = {}
        self.read_first = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        places = {_place(each) for each in inputs}
        for each in inputs:
            if _place(each) not in self._known:
                self._known.add(_place(each))
                self.read_first += _bytes(each)
        self._known |= {_place(each) for each in outputs}
        is_view = not func._schema.is_mutable and any(_place(each) in places for each in outputs)
        if not is_view:
            key = (self._part(), kind_of(str(func)))
            moved = sum(_bytes(each) for each in (*inputs, *outputs))
            self.moved[key] = self.moved.get(key, 0) + moved
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _attention_flops() -> dict[Any, Callable[..., int]]:
    """Attention that torch's counter does not know: the CPU's fused one, and ours with routes."""
    aten, ours = torch.ops.aten, torch.ops.pivotal_kernels
    found: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    if hasattr(ours, "routed_attention"):
        found[ours.routed_attention] = _routed
    return found


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products of [N, d] with [d, L], for each row and head; arguments are shapes."""
    rows, heads, queries, width = query
    return 2 * int(rows * heads * queries * key[-2]) * int(width + value[-1])


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products where forward had two: the scores again, and four gradients."""
    return _attention(query, key, value) * 5 // 2


def _routed(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two attentions: of the donor's scores and of the row's own."""
    return 2 * _attention(query, key, value)
