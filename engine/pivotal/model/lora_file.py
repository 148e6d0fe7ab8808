"""LoRA files: low-rank changes of weights (Hu et al. 2021, arXiv:2106.09685), in the two namings.

kohya's names flatten a module's path (`lora_unet_mid_block_.._to_q.lora_down.weight`), in
diffusers' words or, for SDXL, in latent-diffusion's; diffusers and peft keep the dots
(`unet.mid_block...to_q.lora_A.weight`). diffusers has peft's alphas in the file's metadata, peft
itself in a config beside the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pivotal.errors import ModelError
from pivotal.model.fingerprint import content_digest
from pivotal.model.folder import read_json
from pivotal.model.safetensors_header import Header, read_header
from pivotal.model.weights import tensors_of

_ENDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
_OTHER_KINDS = {  # by a part of a name
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "oft_": "an OFT",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lora_mid": "a LoCon in Tucker form",
}
_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)$")  # diffusers' names before 0.22
_WHOLE = (".diff", ".diff_b")
_PEFT = "lora_adapter_metadata"
_OF_PEFT = "adapter_model.safetensors"  # in a folder, as diffusers' next one
_IN_FOLDERS = (_OF_PEFT, "pytorch_lora_weights.safetensors")
_BESIDE = "adapter_config.json"
_UNSUPPORTED = ("alpha_pattern", "use_rslora", "use_dora")  # of peft's settings


@dataclass(frozen=True)
class Lora:
    """Which LoRA, and how much of it: the weights get `scale` times its change."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"LoRA {self.path}: scale={self.scale}; a finite number is expected")

    @staticmethod
    def of(told: str | Path | Lora) -> Lora:
        """From a path, or `FILE:0.8`."""
        if isinstance(told, Lora):
            return told
        path, _, scale = str(told).rpartition(":")
        try:
            return Lora(Path(path), float(scale)) if path else Lora(Path(told))
        except ValueError as error:
            if "finite" in str(error):
                raise
            return Lora(Path(told))

    def __str__(self) -> str:
        return f"{self.path}:{self.scale:g}"


@dataclass(frozen=True)
class LowRank:
    """One weight's change, `alpha / r * up @ down`; kernels count as matrices [out, the rest]."""

    down: Tensor  # [r, in] or [r, in, k, k]
    up: Tensor  # [out, r] or [out, r, 1, 1]
    alpha: float

    def require(self, where: str, shape: tuple[int, ...]) -> None:
        """Raise ModelError for a change that does not fit a weight or is not finite."""
        down, up = self._factors()
        if up.shape[1] != len(down) or [len(up), down.shape[1]] != [shape[0], math.prod(shape[1:])]:
            raise ModelError(
                f"{where} is of shapes {list(self.up.shape)} and {list(self.down.shape)}, which "
                f"do not fit a weight of {list(shape)}"
            )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise ModelError(f"{where} holds NaN or infinity")

    def change(self, shape: tuple[int, ...]) -> Tensor:
        """The change, float32, in a weight's shape, which fits."""
        down, up = self._factors()
        return (self.alpha / len(down) * (up @ down)).reshape(shape)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """As float32 matrices [r, the rest] and [out, r]."""
        return self.down.float().flatten(1), self.up.float().flatten(1)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's contents. layers: by the module's name as the file has it."""

    path: Path
    digest: str
    layers: Mapping[str, LowRank]


def read_lora(path: Path) -> LoraFile:
    """Read a file, or the one in a folder. Raises ModelError for damage, and for what is no LoRA
    that can be merged.
    """
    path = _file_of(path)
    header = read_header(path)
    _refuse_others(path, header)
    alphas = _alphas_in_metadata(path, header) or _alphas_beside(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors_of(path):
        end = next((each for each in _ENDS if name.endswith(each)), None)
        if end is None or not (tensor.is_floating_point() or end == ".alpha"):
            raise ModelError(
                f"{path} holds {name[:80]} ({tensor.dtype}), which is no part of a LoRA in kohya's "
                "or diffusers' names"
            )
        parts.setdefault(name.removesuffix(end), {})[_ENDS[end]] = tensor
    if not parts:
        raise ModelError(f"{path} holds no LoRA: it is empty")
    layers = {_module(name): _low_rank(path, name, each, alphas) for name, each in parts.items()}
    told = "".join(f" alpha {alpha!r}" for name, alpha in alphas.items() if not name)
    return LoraFile(path, content_digest(path) + told, layers)


def _file_of(path: Path) -> Path:
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        return path
    found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
    if not found:
        raise ModelError(f"{path} is a folder without {' or '.join(_IN_FOLDERS)}")
    return found[0]


def _low_rank(
    path: Path, name: str, parts: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> LowRank:
    missing = [each for each in ("down", "up") if each not in parts]
    if missing or min(parts["down"].ndim, parts["up"].ndim) < 2 or 0 in parts["down"].shape:
        raise ModelError(
            f"{path}: {name[:80]} has no {missing[0]}"
            if missing
            else f"{path}: {name[:80]} has factors that are no matrices"
        )
    rank = len(parts["down"])
    alpha = alphas.get(name.partition(".")[0], alphas.get("", float(rank)))
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise ModelError(f"{path}: {name[:80]} has an alpha that is no single number")
        alpha = float(parts["alpha"])
    if not math.isfinite(alpha):
        raise ModelError(f"{path}: {name[:80]} has alpha {alpha}")
    return LowRank(parts["down"], parts["up"], alpha)


def _module(name: str) -> str:
    """The module's name, of what is stored for it."""
    name = name.removeprefix("base_model.model.")
    return _PROCESSOR.sub(lambda found: f".{found[1]}" + ".0" * (found[1] == "to_out"), name)


def _alphas_beside(path: Path) -> dict[str, float]:
    """The alpha of peft's config, of all components ("")."""
    beside = path.with_name(_BESIDE)
    if path.name != _OF_PEFT or not beside.is_file():
        return {}
    settings = read_json(beside)
    for name in _UNSUPPORTED:
        if settings.get(name):
            raise ModelError(f"{beside} describes a LoRA with {name}, which is not supported")
    try:
        return {"": float(settings["lora_alpha"])}
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{beside} has no lora_alpha that is a number") from None


def _alphas_in_metadata(path: Path, header: Header) -> dict[str, float]:
    """peft's alphas by component, as diffusers keeps them."""
    told = header.metadata.get(_PEFT)
    if told is None:
        return {}
    try:
        settings = dict(json.loads(told))
        found = {
            key.removesuffix(".lora_alpha"): float(value)
            for key, value in settings.items()
            if key.endswith(".lora_alpha")
        }
    except (ValueError, TypeError, RecursionError):
        raise ModelError(f"{path}: its {_PEFT} can't be read") from None
    for name in _UNSUPPORTED:
        if any(key.endswith(f".{name}") and value for key, value in settings.items()):
            raise ModelError(f"{path} is a LoRA with {name}, which is not supported")
    return found


def _refuse_others(path: Path, header: Header) -> None:
    whole = next((name for name in header.tensors if name.endswith(_WHOLE)), None)
    if whole is not None:
        raise ModelError(
            f"{path} has whole weights beside low-rank ones ({whole[:80]}): not supported"
        )
    for mark, kind in _OTHER_KINDS.items():
        found = next((name for name in header.tensors if mark in name), None)
        if found is not None:
            raise ModelError(
                f"{path} is {kind} ({found[:80]}), which is not supported; a plain LoRA has "
                "lora_down and lora_up, or lora_A and lora_B"
            )
