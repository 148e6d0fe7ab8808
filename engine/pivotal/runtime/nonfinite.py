"""Answers that hold NaN or infinity, asked for again in float32.

A network in float16 overflows at 65504. What overflows is a row here and there, so the rows alone
are asked again, of the same weights: `Upcast` widens each as it is used. Of a forward pass no
second copy stays; a gradient keeps the widened weights until it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pivotal.driver import Denoiser
from pivotal.query import Answer, Noise, Query

logger = logging.getLogger(__name__)

_HALVES = (torch.float16, torch.bfloat16)


class HigherPrecisionRetry:
    """A denoiser whose answers' non-finite rows are those of another one, of higher precision.

    retried: rows asked again since construction. lost: those of them that were not finite then
    either; they are handed on, and the run's own checks say what came of it.
    """

    def __init__(self, inner: Denoiser, higher: Denoiser) -> None:
        self.inner = inner
        self.higher = higher
        self.retried = 0
        self.lost = 0

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
        answer = self.inner.answer(query)
        overflowed = ~finite_rows(answer) & _finite(query.latents)
        if not bool(overflowed.any()):
            return answer
        rows = _with_ties(query, overflowed.nonzero().flatten().tolist())
        wider = self.higher.answer(query.select(rows))
        lost = int((~finite_rows(wider)).sum())
        self.retried += len(rows)
        self.lost += lost
        logger.info("%d of %d rows overflowed; asked again in float32", len(rows), query.rows)
        if lost:
            logger.warning("%d rows hold NaN or infinity in float32 too", lost)
        return _replaced(answer, rows, wider)


def finite_rows(answer: Answer) -> Tensor:
    """Which rows of an answer hold neither NaN nor infinity: bool [B]."""
    return torch.stack([_finite(part) for part in _tensors(answer)]).all(dim=0)


def _finite(values: Tensor) -> Tensor:
    return torch.isfinite(values).flatten(1).all(dim=1)


def _with_ties(query: Query, rows: list[int]) -> Tensor:
    """The rows, and those that they share attention with: int64 [R]."""
    tied = [group for group in query.ties() if not set(group).isdisjoint(rows)]
    return torch.tensor(sorted(row for group in tied for row in group))


def _tensors(answer: Answer) -> Iterable[Tensor]:
    """What must be finite, [B, ...] each. x0 is not read at zero terminal SNR, nor checked."""
    if isinstance(answer, Noise):
        return (answer.eps,)
    return (answer.eps, answer.loss[:, None], answer.gradient)


def _replaced(answer: Answer, rows: Tensor, others: Answer) -> Answer:
    """The answer with some rows from another one, in memory of its own."""
    made: dict[str, Tensor | None] = {}
    for name in type(answer).__dataclass_fields__:
        value, other = getattr(answer, name), getattr(others, name)
        if value is None or other is None:
            made[name] = value
            continue
        made[name] = value.index_copy(0, rows.to(value.device), other.to(value))
    return type(answer)(**made)  # type: ignore[arg-type]


class Upcast(nn.Module):
    """A network in half precision, run in float32: every weight is widened where it is used.

    Inputs are expected in float32. Slow, and for torch's eager mode alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        with _Widening():
            return self.network(*inputs)


class _Widening(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _READS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs or {}))
        return func(*args, **kwargs)


# Attribute reads say what a tensor is, not what it is multiplied with.
_READS = {
    getattr(Tensor, name).__get__
    for name in ("dtype", "shape", "device", "requires_grad", "is_leaf", "grad")
}


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor
