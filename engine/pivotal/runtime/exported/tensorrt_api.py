"""TensorRT and TensorRT-RTX as one: the same classes in two packages, and what sets them apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from pivotal.errors import BackendError

logger = logging.getLogger(__name__)

FLAVOURS = ("tensorrt", "tensorrt_rtx")
RTX_TARGETS = ("75", "80", "86", "89", "120", "121")
"""Compute capabilities that TensorRT-RTX builds for; not 90, the H100's."""


@dataclass(frozen=True)
class Api:
    """One flavour's module. Only TensorRT-RTX builds for GPUs that are not there."""

    flavour: str
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def ahead_of_time(self) -> bool:
        return self.flavour == "tensorrt_rtx"

    def require_targets(self, sm: tuple[str, ...], device: torch.device | None = None) -> None:
        """Raise ValueError for targets that this flavour can't build for here, on a device."""
        own = current_sm(device)
        if not sm and own is None:
            raise ValueError(
                "there is no GPU to build for; name one with --sm (TensorRT-RTX builds for "
                f"{', '.join(RTX_TARGETS)} without having it)"
            )
        if len(set(sm)) != len(sm):
            raise ValueError(f"sm={', '.join(sm)} names a target twice")
        if self.ahead_of_time:
            wrong = [each for each in (sm or (str(own),)) if each not in RTX_TARGETS]
            if wrong:
                raise ValueError(
                    f"TensorRT-RTX can't build for sm {', '.join(wrong)}; accepted are "
                    f"{', '.join(RTX_TARGETS)}"
                )
        elif own is None or any(each != own for each in sm):
            raise ValueError(
                f"TensorRT builds for this machine's GPU alone ({'none' if own is None else own}), "
                f"not for sm {', '.join(sm)}; TensorRT-RTX builds for named ones"
            )

    def context(self, engine: Any) -> Any:
        """A context whose scratch memory its caller provides; None where it can't be made.

        TensorRT-RTX compiles kernels for the shapes at once: by default it does so while others
        run, and a CUDA graph captured meanwhile would keep the slow general ones.
        """
        own = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.ahead_of_time:
            return engine.create_execution_context(own)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(own)
        eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        return engine.create_execution_context(config)

    def logger(self) -> Any:
        """TensorRT's messages in Python's logging."""
        severity = self.module.ILogger.Severity
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.INFO,  # dozens in a sound build
        }

        class Logger(self.module.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.last_error = ""

            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level == logging.ERROR:
                    self.last_error = message.strip().split("\n")[0]
                    level = logging.INFO  # raised as an error's sentence
                logger.log(level, "%s", message)

        return Logger()

    def monitor(self, told: Callable[[str], None], stop: Callable[[], bool]) -> Any:
        """Says which phase of a build runs, and ends it where `stop` says so.

        TensorRT prints what a callback raises and goes on; here it ends the build, and is kept as
        `error` for who started it.
        """

        class Monitor(self.module.IProgressMonitor):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.steps: dict[str, int] = {}
                self.error: BaseException | None = None

            def _tell(self, phase: str) -> None:
                if self.error is None:
                    try:
                        told(phase)
                    except BaseException as error:
                        self.error = error

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                self.steps[phase] = steps
                self._tell(phase)

            def phase_finish(self, phase: str) -> None:
                self.steps.pop(phase, None)

            def step_complete(self, phase: str, step: int) -> bool:
                self._tell(f"{phase}: {step + 1} of {self.steps.get(phase, step + 1)}")
                return self.error is None and not stop()

        return Monitor()


def api_of(flavour: str = "auto") -> Api:
    """The named flavour, or for "auto" the first of `FLAVOURS` that is installed.

    Raises ValueError for an unknown one, BackendError where it is not installed.
    """
    if flavour not in ("auto", *FLAVOURS):
        raise ValueError(
            f"flavour={flavour!r} is unknown; accepted are auto, {', '.join(FLAVOURS)}"
        )
    wanted = FLAVOURS if flavour == "auto" else (flavour,)
    for name in wanted:
        if find_spec(name) is not None:
            try:
                return Api(name, import_module(name))
            except (ImportError, OSError, RuntimeError) as error:
                raise BackendError(f"{name} is installed and can't be loaded: {error}") from error
    extras = " or ".join(f"`pip install 'pivotal[{name.replace('_', '-')}]'" for name in wanted)
    raise BackendError(f"{' or '.join(wanted)} is not installed; install it with {extras}`")


@contextmanager
def on_gpu(device: torch.device | None) -> Iterator[None]:
    """A CUDA device as the current one, which TensorRT uses; of any other kind nothing changes."""
    if device is None or device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def current_sm(device: torch.device | None = None) -> str | None:
    """A CUDA device's compute capability, as "89"; None without a GPU.

    device: the current one if None, or if it is no CUDA device.
    """
    if not torch.cuda.is_available():
        return None
    named = device if device is not None and device.type == "cuda" else None
    major, minor = torch.cuda.get_device_capability(named)
    return f"{major}{minor}"
