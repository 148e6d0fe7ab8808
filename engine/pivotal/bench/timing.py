"""Seconds of calls on a device: events on a GPU, the clock on a CPU; cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pivotal.bench.disturbance import Sample, waited


class Stopwatch:
    """Seconds of calls on one device, and its name for folders."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = "cpu"
        self._cache = torch.empty(0)
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.name = properties.name.lower().replace(" ", "-")
            size = 2 * int(properties.L2_cache_size)
            self._cache = torch.empty(size, dtype=torch.int8, device=device)

    def sample(self, run: Callable[[], object]) -> Sample:
        """One call, and how long it had to wait for a core of its own; a GPU is not shared out."""
        if self.device.type != "cpu":
            return Sample(self.seconds(run))
        before = waited()
        seconds = self.seconds(run)
        return Sample(seconds, waited() - before)

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call, by events on a GPU, whose L2 is filled with something else before. That
        keeps it busy while the call is launched. A CPU's caches stay as they are.
        """
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)  # of `cuda:1`, whichever is the current one
        torch.cuda.synchronize(self.device)
        self._cache.zero_()
        before.record(stream)
        run()
        after.record(stream)
        torch.cuda.synchronize(self.device)
        return float(before.elapsed_time(after)) / 1000


def bandwidth(stopwatch: Stopwatch) -> float:
    """Bytes read and written a second by a copy that no cache holds: the bound to compare with."""
    copy, moved = large_copy(stopwatch.device)
    times = [stopwatch.seconds(copy) for _ in range(7)]
    return moved / sorted(times[2:])[2]


def large_copy(device: torch.device) -> tuple[Callable[[], object], int]:
    """A copy that no cache holds, and the bytes that it reads and writes."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size


def large_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A matrix product that keeps the arithmetic busy, and its FLOPs (2 a multiply-add)."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * side**3
