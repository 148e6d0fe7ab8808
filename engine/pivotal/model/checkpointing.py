"""Gradient checkpointing that computes again under the modes of the first time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """A block's output, without what its backward pass needs: that is computed again there.

    torch alone would do so outside the function modes that were on, as `runtime.nonfinite`'s.
    """
    if torch.compiler.is_compiling():
        return checkpoint(block.__call__, *inputs, use_reentrant=False)
    modes = _get_current_function_mode_stack()
    return checkpoint(
        block.__call__,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _within(modes)),
    )


@contextmanager
def _within(modes: list[TorchFunctionMode]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
