"""What this machine can run, and why not the rest. Nothing here fails because something is missing.

Only torch is imported, to ask for devices; of other libraries the installed version is read.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any

from . import __version__

_NEEDED = ("diffusers", "transformers", "huggingface_hub", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. detail: its version or size, or why it can't be used."""

    name: str
    usable: bool
    detail: str


def examine() -> list[Finding]:
    """Look at the machine: software, devices, backends, memory, folders, the bundled model."""
    torch, python = _torch(), platform.python_version()
    findings = [
        Finding("pivotal", True, f"{__version__}, Python {python}, {platform.platform()}"),
        Finding("torch", torch.module is not None, torch.detail),
        *(_library(name) for name in _NEEDED),
        _cpu(torch.module),
        *_cuda(torch.module),
    ]
    gpu = any(each.name.startswith("cuda") and each.usable for each in findings)
    findings += [
        _backend("triton", gpu, "triton"),
        _backend("xformers", gpu, "xformers"),
        _backend("onnxruntime", True, "onnxruntime", "onnxruntime-gpu"),
        _backend("tensorrt", gpu, "tensorrt"),
        _backend("tensorrt_rtx", True, "tensorrt-rtx"),  # builds engines without a GPU
        _memory(),
        _bundled(),
        *(_safely(name, find) for name, find in (("cache", _cache), ("hub cache", _hub))),
    ]
    return findings


@dataclass(frozen=True)
class _Torch:
    module: Any
    detail: str


def _torch() -> _Torch:
    try:
        import torch
    except Exception as error:  # a broken installation raises anything; that is what we report
        return _Torch(None, f"can't be imported: {_first_line(error)}")
    return _Torch(torch, str(torch.__version__))


def _library(name: str) -> Finding:
    found = _version(name)
    return Finding(name, found is not None, found or "not installed; pivotal needs it")


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu(torch: Any) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch is None:
        return Finding("cpu", False, f"{cores} cores; torch is missing")
    return Finding("cpu", True, f"{cores} cores, {torch.get_num_threads()} threads in use")


def _cuda(torch: Any) -> list[Finding]:
    if torch is None:
        return [Finding("cuda", False, "torch is missing")]
    if torch.version.cuda is None:
        return [Finding("cuda", False, "this build of torch is for the CPU only")]
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            return [Finding("cuda", False, f"torch has CUDA {torch.version.cuda}; no usable GPU")]
        return [_gpu(torch, index) for index in range(count)]
    except RuntimeError as error:
        return [Finding("cuda", False, _first_line(error))]


def _gpu(torch: Any, index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Finding(
        f"cuda:{index}",
        True,
        f"{properties.name}, compute {properties.major}.{properties.minor}, "
        f"{_size(free)} of {_size(total)} free, CUDA {torch.version.cuda}",
    )


def _backend(module: str, device: bool, *distributions: str) -> Finding:
    """An optional library, by its version. device: whether what it runs on is there."""
    version = _version(*distributions)
    if version is None or util.find_spec(module) is None:
        return Finding(module, False, "not installed")
    if not device:
        return Finding(module, False, f"{version}, but it needs a CUDA device")
    return Finding(module, True, version)


def _memory() -> Finding:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return Finding("memory", True, "its size can't be read on this system")
    detail = f"{_size(total)}, {_size(free)} untouched"
    enough = total >= 2 * 10**9
    return Finding("memory", enough, detail if enough else f"{detail}; 2 GB are needed")


def _bundled() -> Finding:
    folder = resources.files("pivotal") / "bundled" / "shapes"
    parts = (
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    )
    absent = [part for part in parts if not (folder / part).is_file()]
    if absent:
        return Finding("bundled model", False, f"{', '.join(absent)} missing; install again")
    return Finding("bundled model", True, "shapes")


def _safely(name: str, find: Callable[[], Finding]) -> Finding:
    try:
        return find()
    except Exception as error:  # whatever it is, the other findings are still worth having
        return Finding(name, False, _first_line(error))


def _cache() -> Finding:
    from .cache import default_cache_folder

    folder = default_cache_folder()
    near = _existing(folder)
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        return Finding("cache", False, f"{folder} can't be written; PIVOTAL_CACHE names another")
    return Finding("cache", True, f"{folder}, {_size(shutil.disk_usage(near).free)} free")


def _hub() -> Finding:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    where = f"{folder}, {_size(shutil.disk_usage(_existing(folder)).free)} free"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub cache", True, f"{where}; HF_HUB_OFFLINE is set: nothing is fetched")
    return Finding("hub cache", True, where)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
