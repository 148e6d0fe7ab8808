"""Where and with what a row was measured, and how to measure it again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pivotal.code_version import whole_code

_DECIDING = (":/engine", ":/kernels", ":/benchmarks", ":(top,exclude)benchmarks/results")
"""What changes figures. The results themselves do not: a second run of one commit is as clean."""

_LIBRARIES = ("torch", "diffusers", "transformers", "triton", "xformers", "onnxruntime", "tensorrt")


def environment(device: torch.device, command: Sequence[str] | None = None) -> dict[str, Any]:
    """The machine, the versions, the commit. command: the process's own if None; where its results
    go is no part of it.
    """
    words = ["pivotal", *sys.argv[1:]] if command is None else list(command)
    if "--results" in words:
        place = words.index("--results")
        del words[place : place + 2]
    found: dict[str, Any] = {
        "command": " ".join(words),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_DECIDING)),
        "code": whole_code(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "cuda": torch.version.cuda,
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    if device.type == "cuda":
        found["gpu"] = gpu_state(device)
    return found


def gpu_state(device: torch.device) -> dict[str, Any]:
    """Driver, power (W), clocks (MHz) and temperature (degrees C) through NVML."""
    name = torch.cuda.get_device_properties(device).name
    try:
        import pynvml
    except ImportError:
        return {"name": name, "nvml": "not installed; the extra pivotal[bench] has it"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:  # no driver library, as in some containers
        return {"name": name, "nvml": str(error)}
    try:
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        temperature = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        return {
            "name": name,
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "power_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "power_limit_watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "temperature_celsius": temperature,
        }
    except pynvml.NVMLError as error:  # containers often withhold some of it
        return {"name": name, "nvml": str(error)}
    finally:
        pynvml.nvmlShutdown()


def _cpu() -> str:
    """The processor's own name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git says of the sources, or None where they are in no repository of ours."""
    here = Path(__file__).parent
    if shutil.which("git") is None or "site-packages" in here.parts:
        return None
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=here, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
