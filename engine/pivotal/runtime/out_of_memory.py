"""Running out of memory: told apart from other errors, and said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pivotal.errors import OutOfMemoryError

ADVICE = "use a smaller size, dtype float16, gradient checkpointing, or set a memory limit"

_SIGNS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """A device's, or what torch tells by its text alone: the CPU allocator's, CUDA's own (an
    AcceleratorError), and cuBLAS's, which found no room for its workspace.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Within, running out of memory raises OutOfMemoryError that says while doing what."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory while {what}: {ADVICE}") from error


def named(failure: Exception, rows: int) -> Exception:
    """Running out of memory with the fewest rows a job can ask as an error of ours, others as they
    are.
    """
    if not is_out_of_memory(failure):
        return failure
    error = OutOfMemoryError(
        f"out of memory with {rows} row{'s' * (rows != 1)} of the network at once, the fewest that "
        f"this job can ask for: {ADVICE}"
    )
    error.__cause__ = failure
    return error
