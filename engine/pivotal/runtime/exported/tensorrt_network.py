"""One TensorRT engine on torch's memory and stream."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotal.errors import BackendError
from pivotal.runtime.exported.tensorrt_api import Api
from pivotal.runtime.stream_order import StreamOrder

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Prepared:
    """A context, and the memory that it writes into as long as it lives."""

    context: Any
    outputs: tuple[Tensor, ...]
    scratch: Tensor


class TensorRTNetwork:
    """Enqueues on torch's current stream; inputs and outputs are bound by address.

    Each set of shapes has a context and outputs of its own, made when it first comes: what was
    captured in a CUDA graph is then never touched by another shape. What is returned is a copy that
    the next call leaves alone. Threads take turns to enqueue, and so do their streams.

    weights: an ONNX file whose weights a stripped engine is given.
    Raises BackendError for a file that this machine can't run.
    """

    def __init__(
        self, path: Path, api: Api, device: torch.device, *, weights: Path | None = None
    ) -> None:
        trt, self._log = api.module, api.logger()
        self.path, self.device, self._api = path, device, api
        self._runtime = trt.Runtime(self._log)  # an engine lives as long as its runtime
        with torch.cuda.device(device):
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise BackendError(f"{api.flavour} can't load {path.name}: {self._log.last_error}")
            if weights is not None:
                self._refit(weights)
        self._inputs: dict[str, torch.dtype] = {}
        self._outputs: dict[str, torch.dtype] = {}
        for place in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(place)
            taken = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            kind = _dtype(trt, self._engine.get_tensor_dtype(name))
            (self._inputs if taken else self._outputs)[name] = kind
        self._ready: dict[Shapes, _Prepared] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8, device=device)
        self._turn = threading.Lock()
        self._order = StreamOrder(device)

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Raises ValueError for inputs that are not the engine's, BackendError for a failed run."""
        if set(inputs) != set(self._inputs):
            raise ValueError(
                f"{self.path.name} takes {', '.join(self._inputs)}; got {', '.join(inputs)}"
            )
        bound = {
            name: inputs[name].detach().to(self.device, dtype, non_blocking=True).contiguous()
            for name, dtype in self._inputs.items()
        }
        with self._turn, torch.cuda.device(self.device), self._order.turn():
            stream = torch.cuda.current_stream(self.device)
            ready = self._prepared(bound, stream)
            for name, tensor in bound.items():
                ready.context.set_tensor_address(name, tensor.data_ptr())
            if not ready.context.execute_async_v3(stream.cuda_stream):
                raise BackendError(f"{self.path.name} failed: {self._log.last_error}")
            for tensor in (*bound.values(), *ready.outputs, ready.scratch):
                tensor.record_stream(stream)  # not freed before the engine is done with it
            return tuple(tensor.clone() for tensor in ready.outputs)

    def _prepared(self, bound: Mapping[str, Tensor], stream: torch.cuda.Stream) -> _Prepared:
        shapes = tuple(tuple(tensor.shape) for tensor in bound.values())
        if shapes in self._ready:
            return self._ready[shapes]
        profile = self._profile(bound)
        context = self._api.context(self._engine)
        if context is None or not context.set_optimization_profile_async(
            profile, stream.cuda_stream
        ):
            raise BackendError(
                f"{self.path.name} can't be prepared for latents "
                f"{list(bound['latents'].shape)}: {self._log.last_error}"
            )
        for name, tensor in bound.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise BackendError(f"{self.path.name} takes no {name} of {list(tensor.shape)}")
        outputs = tuple(
            torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device=self.device)
            for name, dtype in self._outputs.items()
        )
        for name, tensor in zip(self._outputs, outputs, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        needed = int(context.update_device_memory_size_for_shapes())
        if self._scratch.numel() < needed:  # a captured graph keeps the smaller one it knows
            self._scratch = torch.empty(needed, dtype=torch.uint8, device=self.device)
        context.set_device_memory(self._scratch.data_ptr(), needed)
        self._ready[shapes] = _Prepared(context, outputs, self._scratch)
        return self._ready[shapes]

    def _profile(self, bound: Mapping[str, Tensor]) -> int:
        """The optimisation profile that these shapes are in."""
        for place in range(self._engine.num_optimization_profiles):
            limits = (self._engine.get_tensor_profile_shape(name, place) for name in bound)
            if all(
                low <= size <= high
                for tensor, (lows, _, highs) in zip(bound.values(), limits, strict=True)
                for low, size, high in zip(tuple(lows), tensor.shape, tuple(highs), strict=True)
            ):
                return place
        raise BackendError(
            f"{self.path.name} has no profile for latents {list(bound['latents'].shape)}"
        )

    def _refit(self, weights: Path) -> None:
        trt = self._api.module
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise BackendError(
                f"{self.path.name} can't take its weights from {str(weights)!r}: "
                f"{self._log.last_error}"
            )


def _dtype(trt: Any, kind: Any) -> torch.dtype:
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT32: torch.int32,
    }[kind]
