"""Functions through `torch.compile`, one graph for each kind of inputs, and none twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.errors import BackendError

from .compile_cache import kept_in
from .out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)


class CompiledGraphs:
    """Runs functions of a module and tensors with `fullgraph=True`, for the very shapes they meet.

    A graph serves all inputs of equal shapes, strides, dtypes and need of gradients, and all
    modules of one structure. backend: as `torch.compile` takes it. cache: see `kept_in`. `seconds`
    holds what each graph's first call took, tracing and compiling.
    """

    def __init__(self, backend: str, cache: Path | None) -> None:
        self.backend = backend
        self.cache = cache
        self.seconds: dict[str, float] = {}
        self._graphs: dict[Hashable, Callable[..., Any]] = {}

    def run(
        self, function: Callable[..., Any], structure: str, module: nn.Module, *inputs: Any
    ) -> Any:
        """`function(module, *inputs)`. structure: equal for modules that share their graphs.

        Raises BackendError where it can't be compiled.
        """
        kind = (function, structure, torch.is_grad_enabled(), *map(_kind, inputs))
        graph = self._graphs.get(kind)
        if graph is not None:
            return graph(module, *inputs)
        name = f"{function.__name__.strip('_')}_{len(self._graphs)}"
        graph = self._compiled(function, name, self._options(module))
        start = time.perf_counter()
        with kept_in(self.cache), _backward_at_once():
            try:
                answer = graph(module, *inputs)
            except Exception as error:  # whatever a compiler raises
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().split("\n")[0]
                raise _cant(f"{type(error).__name__}: {reason}") from error
        self._graphs[kind] = graph
        self.seconds[f"{name} {_shape(inputs)}"] = time.perf_counter() - start
        logger.info("compiled %s %s in %.1f s", name, _shape(inputs), time.perf_counter() - start)
        return answer

    def _options(self, module: nn.Module) -> dict[str, Any] | None:
        """What the compiler is told beside its defaults, or None.

        For a CPU torch 2.13's inductor lays convolutions out channels last, and then compiles a
        wrong backward pass: of a residual block before a nearest upsampling the whole gradient is
        wrong, of the bundled model's null embedding 7 %. Left as they are, it is right to 2e-6.
        """
        first = next(module.parameters(), None)
        on_cpu = first is not None and first.device.type == "cpu"
        if self.backend == "inductor" and on_cpu and torch.is_grad_enabled():
            return {"layout_optimization": False}
        return None

    def _compiled(
        self, function: Callable[..., Any], name: str, options: dict[str, Any] | None
    ) -> Callable[..., Any]:
        """The function with a code object of its own.

        Dynamo keeps and guards graphs, and counts recompiles, by code object: one for all kinds of
        inputs would have every guard tried in turn, and no graph after the eighth.
        """
        assert isinstance(function, FunctionType)
        code = function.__code__.replace(co_name=name)
        own = FunctionType(
            code, function.__globals__, name, function.__defaults__, function.__closure__
        )
        own.__kwdefaults__ = function.__kwdefaults__
        compiled: Callable[..., Any] = torch.compile(
            own, fullgraph=True, dynamic=False, backend=self.backend, options=options
        )
        return compiled


def require_cpp_compiler() -> None:
    """Raise BackendError where torch finds no C++ compiler, which compiling for a CPU needs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise _cant("no C++ compiler was found; install g++ or name one in CXX") from error


def _cant(reason: str) -> BackendError:
    return BackendError(
        f"the network can't be compiled ({reason}); switch compiling off (compile=False, or leave "
        "--compile out) to run it eagerly"
    )


def _backward_at_once() -> AbstractContextManager[Any]:
    """Compile a graph's backward pass with its forward pass, not when a gradient is first asked:
    so it is cached, timed, and fails, as the forward pass does.
    """
    import torch._functorch.config as config

    patched: AbstractContextManager[Any] = config.patch(force_non_lazy_backward_lowering=True)
    return patched


def _kind(value: Any) -> Hashable:
    """Inputs of one kind share a graph."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    if is_dataclass(value):
        return tuple(_kind(getattr(value, each.name)) for each in fields(value))
    found: Hashable = value
    return found


def _shape(inputs: tuple[Any, ...]) -> str:
    """The first input's shape: the latents', or a block's hidden states'."""
    return "x".join(map(str, inputs[0].shape))
