"""CUDA graphs: a batch's forward pass, or forward and backward, captured once and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pivotal.driver import Denoiser
from pivotal.errors import BackendError
from pivotal.query import Answer, Denoise, Noise, NoiseGradient, NoiseLoss, Query

from .out_of_memory import is_out_of_memory
from .stream_order import StreamOrder

Graphed = Denoise | NoiseGradient
Work = Callable[[], Answer]
Capture = Callable[[Work], tuple[Callable[[], None], Answer]]
"""Records what `work` does. Returns how to do it again, and the answer that it writes into."""

_WARM_UPS = 3  # runs before a capture, for whatever a first run compiles, tunes or allocates


@dataclass(frozen=True)
class StaticBuffers:
    """The memory that a captured batch reads its query from and writes its answer to."""

    query: Graphed
    answer: Noise | NoiseLoss
    replay: Callable[[], None]

    def run(self, query: Graphed) -> Any:
        """Copy a query of the same kind in, replay, and copy the answer out, to where the query's
        latents are.
        """
        for static, given in zip(_tensors(self.query), _tensors(query), strict=True):
            static.copy_(given, non_blocking=True)
        self.replay()
        answer = self.answer.owned()
        return answer.to(query.latents.device)


class GraphedDenoiser:
    """Answers by replaying graphs of `inner`, one for each kind and size of batch.

    Give it batches of few sizes (`BucketedDenoiser`): it captures whatever it meets. All graphs
    share one memory pool, in which smaller batches fit into what larger ones left; so `capture`
    takes the largest first. An answer is never a view of a graph's memory. Threads take turns, and
    so do their streams.

    capture: `CudaCapture` of the device if None.
    """

    def __init__(
        self, inner: Denoiser, device: torch.device, *, capture: Capture | None = None
    ) -> None:
        self.inner = inner
        self.device = device
        self._record = capture or CudaCapture(device)
        self._buffers: dict[Hashable, StaticBuffers] = {}
        self._turn = threading.Lock()
        self._order = StreamOrder(device)  # all graphs write into one pool

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def answers(self) -> frozenset[type]:
        """Not LossGradient: a user's loss can't be captured."""
        return self.inner.answers & {Denoise, NoiseGradient}

    def capture(self, queries: Iterable[Graphed]) -> None:
        """Capture batches like these, the largest first. Raises BackendError."""
        for query in sorted(queries, key=lambda each: each.rows, reverse=True):
            self.answer(query)

    def answer(self, query: Query) -> Answer:
        """Raises BackendError for a batch that can't be captured."""
        if not isinstance(query, Denoise | NoiseGradient):
            raise TypeError(f"{self.name} as CUDA graphs answers no {type(query).__name__}")
        with self._turn, self._order.turn(), torch.no_grad():
            kind = _kind(query)
            if kind not in self._buffers:
                self._buffers[kind] = self._captured(query)
            answer: Answer = self._buffers[kind].run(query)
            return answer

    def _captured(self, query: Graphed) -> StaticBuffers:
        static = _static(query, self.device)
        try:
            replay, answer = self._record(lambda: self.inner.answer(static))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0]
            raise BackendError(
                f"{query.rows} rows can't be captured as a CUDA graph ({reason}); switch graphs "
                "off with CompileOptions(cuda_graphs=False)"
            ) from error
        if not isinstance(answer, Noise | NoiseLoss):
            raise TypeError(f"{self.name} answered a {type(query).__name__} with {answer!r}")
        return StaticBuffers(static, answer, replay)


class CudaCapture:
    """Captures on a stream of its own, into one memory pool.

    One stream for all: the allocator gives what one stream has freed to that stream alone, so that
    graphs captured on others would share the pool by name and no memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Work) -> tuple[Callable[[], None], Answer]:
        """Runs `work` a few times, then once under capture: it must not wait for the device."""
        with torch.cuda.device(self.device):
            stream = self._stream = self._stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Another thread may encode or decode meanwhile, and allocate: that must not end it.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                answer = work()
        return graph.replay, answer


def _kind(query: Graphed) -> Hashable:
    """Queries of one kind fit into the same memory."""
    columns = None
    if isinstance(query, Denoise) and query.routes is not None:
        columns = query.routes.columns
    return (query.batch_key(), query.rows, query.alpha_bars.dtype, columns)


def _static(query: Graphed, device: torch.device) -> Graphed:
    """The same rows in fresh memory on the device."""

    def fresh(tensor: Tensor) -> Tensor:
        return tensor.to(device).clone(memory_format=torch.contiguous_format)

    if not isinstance(query, Denoise) or query.routes is None:
        return query.mapped(fresh)
    routes = query.routes.mapped(fresh)
    return replace(replace(query, routes=None).mapped(fresh), routes=routes)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of a query, those of its conditioning and routes among them, in one order."""
    found: list[Tensor] = []
    for each in fields(value):
        part = getattr(value, each.name)
        if isinstance(part, Tensor):
            found.append(part)
        elif hasattr(part, "__dataclass_fields__"):
            found += _tensors(part)
    return found
