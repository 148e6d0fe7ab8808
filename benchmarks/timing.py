"""Timing on a device: events on a GPU, the clock on a CPU; cold caches; where it was measured."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


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

    def clear_cache(self) -> None:
        """Fill the GPU's L2 with something else. A CPU's caches stay as they are."""
        self._cache.zero_()

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call, by device events on a GPU."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        before.record()
        run()
        after.record()
        torch.cuda.synchronize(self.device)
        return float(before.elapsed_time(after)) / 1000


def bandwidth(stopwatch: Stopwatch) -> float:
    """Bytes read and written a second by a copy that no cache holds: the bound to compare with."""
    size = 2**30 if stopwatch.device.type == "cuda" else 2**26
    source = torch.ones(size, dtype=torch.int8, device=stopwatch.device)
    target = torch.empty_like(source)
    times = [stopwatch.seconds(lambda: target.copy_(source)) for _ in range(7)]
    return 2 * size / statistics.median(times[2:])


def quantiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {f"p{share}": ordered[round(last * share / 100)] for share in (20, 50, 80)}


def environment(device: torch.device, command: list[str]) -> dict[str, Any]:
    """Where and with what a row was measured, and how to measure it again."""
    found: dict[str, Any] = {
        "command": " ".join(command),
        "commit": _said("git", "rev-parse", "--short", "HEAD"),
        "dirty": bool(_said("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "cuda": torch.version.cuda,
        "versions": {name: _version(name) for name in ("torch", "triton", "xformers")},
    }
    if device.type == "cuda":
        asked = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu"
        found["gpu"] = torch.cuda.get_device_properties(device).name
        found["smi"] = _said("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    """What a program prints, or None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    here = Path(__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
