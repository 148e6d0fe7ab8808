"""A UNet's parts by name, and ranges that name them in a trace while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

RANGE = "part "
"""How the ranges of our own are told from the operations."""

OUTSIDE = "outside the network"


def part_of(name: str) -> str:
    """A module's path as a part: `mid_block.attentions` of `mid_block.attentions.0`."""
    words = name.split(".")
    if words[-1].isdigit():
        words.pop()
    return ".".join(words)


def parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network's parts by name: its children, and blocks' children in lists, one level down."""
    for name, child in network.named_children():
        blocks = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for index, block in blocks:
            path = f"{name}.{index}" if index else name
            lists = [
                (f"{path}.{kind}.{place}", module)
                for kind, inner in block.named_children()
                if isinstance(inner, nn.ModuleList)
                for place, module in inner.named_children()
            ]
            yield from lists or [(path, block)]


@contextmanager
def ranges(network: nn.Module) -> Iterator[list[str]]:
    """Name every part in the trace while it runs forward; on a GPU as NVTX ranges too.

    Gives the parts that run at the moment, the innermost last.
    """
    current = [OUTSIDE]
    nvtx, open_ranges = torch.cuda.is_available(), []
    handles: list[RemovableHandle] = []

    def enter(name: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            stack = ExitStack()
            stack.callback(current.pop)
            current.append(name)
            stack.enter_context(record_function(RANGE + name))
            if nvtx:
                stack.enter_context(torch.cuda.nvtx.range(name))
            open_ranges.append(stack)

        return begin

    def leave(*_: Any) -> None:
        open_ranges.pop().close()

    for name, module in parts(network):
        handles.append(module.register_forward_pre_hook(enter(part_of(name))))
        handles.append(module.register_forward_hook(leave))
    try:
        yield current
    finally:
        for handle in handles:
            handle.remove()
