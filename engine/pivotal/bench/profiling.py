"""Where the time of chosen steps goes: torch's profiler, grouped by the UNet's parts."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pivotal.bench.limits import Ceilings, Counted, Counting, kind_of
from pivotal.bench.parts import OUTSIDE, RANGE, ranges
from pivotal.bench.timing import Stopwatch, large_copy, large_product


@dataclass(frozen=True)
class Kernel:
    """All operations of one kind in one part of the UNet.

    heaviest: the operation that took most of it. seconds: their own, without what they call; of the
    device where there is one. least_seconds: what the ceilings allow for their FLOPs and bytes;
    None for what was not counted. Small operations whose data stay in a cache may be faster.
    """

    part: str
    kind: str
    heaviest: str
    calls: int
    seconds: float
    flops: int
    least_seconds: float | None

    @property
    def percent_of_roofline(self) -> float | None:
        if self.least_seconds is None or not self.seconds:
            return None
        return 100 * self.least_seconds / self.seconds

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "percent_of_roofline": self.percent_of_roofline}


@dataclass(frozen=True)
class Profile:
    """What was found: kernels, the heaviest first, and seconds of the whole run."""

    kernels: list[Kernel]
    seconds: float
    ceilings: Ceilings


Windowed = Callable[[AbstractContextManager[Any]], object]
"""Work that enters the given context around the part of it that is looked at."""


def profile_run(
    run: Windowed,
    network: nn.Module,
    device: torch.device,
    *,
    trace: Path | None = None,
    snapshot: Path | None = None,
) -> Profile:
    """Run once to count the work, which warms up, then once under the profiler.

    trace: gets a Chrome trace, gzipped, for Perfetto. snapshot: gets the allocator's history, for
    pytorch.org/memory_viz; on a GPU alone. Raises ValueError for a snapshot on a CPU.
    """
    if snapshot is not None and device.type != "cuda":
        raise ValueError(f"a memory snapshot is of a GPU's allocator; the device is {device}")
    with ranges(network) as current:
        counting = Counting(lambda: current[-1])
        run(counting)
    ceilings = _ceilings(Stopwatch(device), next(network.parameters()).dtype)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    if snapshot is not None:
        torch.cuda.memory._record_memory_history()
    profiler, clock = profile(activities=activities, record_shapes=True), _Clock(device)
    with ranges(network):
        run(_both(profiler, clock))
    if snapshot is not None:
        torch.cuda.memory._dump_snapshot(str(snapshot))
        torch.cuda.memory._record_memory_history(enabled=None)
    if trace is not None:
        _write_trace(profiler, trace)
    return Profile(
        _kernels(profiler, counting.by_part(), device, ceilings), clock.seconds, ceilings
    )


@contextmanager
def _both(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


class _Clock:
    """Seconds between entering and leaving, with the device's work done at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now() - self._start


def _ceilings(stopwatch: Stopwatch, dtype: torch.dtype) -> Ceilings:
    product, flops = large_product(stopwatch.device, dtype)
    copy, moved = large_copy(stopwatch.device)
    fastest = [min(stopwatch.seconds(call) for _ in range(7)) for call in (product, copy)]
    return Ceilings(flops / fastest[0], moved / fastest[1])


def _write_trace(profiler: Any, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)


def _kernels(
    profiler: Any, work: Mapping[tuple[str, str], Counted], device: torch.device, ceilings: Ceilings
) -> list[Kernel]:
    """Operations by part and kind. An operation's part is the innermost range around it."""
    seconds: dict[tuple[str, str], dict[str, float]] = {}
    calls: dict[tuple[str, str], int] = {}
    for event in profiler.events():
        if not event.name.startswith(("aten::", "pivotal")):
            continue
        on_device = device.type == "cuda"
        micros = event.self_device_time_total if on_device else event.self_cpu_time_total
        key, name = (_part_around(event), kind_of(event.name)), event.name.removeprefix("aten::")
        group = seconds.setdefault(key, {})
        group[name] = group.get(name, 0.0) + micros / 1e6
        calls[key] = calls.get(key, 0) + 1
    found = [
        Kernel(
            *key,
            heaviest=max(group, key=lambda name: group[name]),
            calls=calls[key],
            seconds=sum(group.values()),
            flops=work[key].flops if key in work else 0,
            least_seconds=ceilings.least_seconds(work[key]) if key in work else None,
        )
        for key, group in seconds.items()
    ]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def _part_around(event: Any) -> str:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(RANGE):
            return str(parent.name.removeprefix(RANGE))
        parent = parent.cpu_parent
    return OUTSIDE
