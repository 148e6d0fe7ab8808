"""Weights from safetensors files into networks, tensor by tensor."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pivotal.errors import ModelError
from pivotal.model.networks import restore_buffers

logger = logging.getLogger(__name__)

_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit

# The published SD 1.x autoencoders still name their attention as diffusers did before 0.17.
_OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
_CLIP_PREFIX = "text_model."  # transformers has it or not, by version and class


def fill(
    network: nn.Module,
    files: Sequence[Path],
    component: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put the weights of a component's files into a network on the meta device.

    Raises ModelError for a damaged file, missing weights and wrong shapes; warns of weights that
    the network has no place for.
    """
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    for path in files:
        for stored, tensor in _tensors(path):
            name = _place(stored, expected)
            if name is None:
                unused.append(stored)
                continue
            _check(tensor, expected[name], f"{path}: {stored}")
            state[name] = tensor.to(device).to(dtype)
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelError(
            f"{component} lacks {len(missing)} of {len(expected)} weights, first {missing[0]}"
        )
    unused = [name for name in unused if not name.endswith("position_ids")]  # of older versions
    if unused:
        logger.warning(
            "%s: %d weights have no place in the network and are not used, first %s",
            component,
            len(unused),
            unused[0],
        )
    network.load_state_dict(state, strict=True, assign=True)
    restore_buffers(network, device)


def read_header(path: Path) -> tuple[bytes, Mapping[str, Any]]:
    """A safetensors file's header, raw and parsed: tensor names to dtype, shape and offsets.

    Raises ModelError for a file that is not one, or not all of one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise ModelError(f"{path} is not a safetensors file, or only a part of one")
            raw = file.read(length)
        header = json.loads(raw)
        promised = 8 + length + max(_ends(header), default=0)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ModelError(f"{path} has a damaged header; it is not a safetensors file") from None
    if size != promised:
        raise ModelError(
            f"{path} has {size} bytes where its header promises {promised}; it is damaged: "
            "download or copy it again"
        )
    return raw, header


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    """Where each tensor's bytes end. Raises ValueError or TypeError for offsets astray."""
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if not 0 <= start <= end:
                raise ValueError(f"{name} lies at {start} to {end}")
            yield int(end)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    read_header(path)  # before anything is mapped
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def _place(stored: str, expected: Mapping[str, Tensor]) -> str | None:
    """The network's name for a stored weight, or None."""
    names = [stored, stored.removeprefix(_CLIP_PREFIX), _CLIP_PREFIX + stored]
    names += [stored.replace(old, new) for old, new in _OLD_ATTENTION.items() if old in stored]
    return next((name for name in names if name in expected), None)


def _check(tensor: Tensor, expected: Tensor, where: str) -> None:
    if tensor.shape != expected.shape:
        raise ModelError(
            f"{where} has shape {list(tensor.shape)} where the config asks for "
            f"{list(expected.shape)}"
        )
    if not tensor.is_floating_point():
        raise ModelError(f"{where} is {tensor.dtype}; quantised weights can't be loaded")
