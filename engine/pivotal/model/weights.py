"""Weights from safetensors files into networks, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pivotal.errors import ModelError
from pivotal.model.networks import restore_buffers
from pivotal.model.safetensors_header import read_header

logger = logging.getLogger(__name__)

# The published SD 1.x autoencoders still name their attention as diffusers did before 0.17.
_OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
_CLIP_PREFIX = "text_model."  # transformers has it or not, by version and class


class Found(NamedTuple):
    """A stored weight, and the name of its place in the network, if it has one."""

    place: str | None
    stored: str
    path: Path
    tensor: Tensor


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
    found = (
        Found(place_of(stored, expected), stored, path, tensor)
        for path in files
        for stored, tensor in tensors_of(path)
    )
    put(network, found, component, device=device, dtype=dtype)


def put(
    network: nn.Module,
    found: Iterable[Found],
    component: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    whole: bool = False,
) -> None:
    """As `fill`, from weights whose places are known.

    whole: where one has no place the network is of another kind, and ModelError is raised.
    """
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    for place, stored, path, tensor in found:
        if place is None:
            unused.append(stored)
            continue
        _check(tensor, expected[place], f"{path}: {stored}")
        state[place] = tensor.to(device).to(dtype)
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelError(
            f"{component} lacks {len(missing)} of {len(expected)} weights, first {missing[0]}"
        )
    unused = [name for name in unused if not name.endswith("position_ids")]  # of older versions
    if unused and whole:
        named = ", ".join(sorted(unused)[:3])
        raise ModelError(
            f"{component} is of a kind unknown to pivotal: {len(unused)} of its weights have no "
            f"place in a Stable Diffusion network, {named}{', ..' * (len(unused) > 3)}"
        )
    if unused:
        logger.warning(
            "%s: %d weights have no place in the network and are not used, first %s",
            component,
            len(unused),
            unused[0],
        )
    network.load_state_dict(state, strict=True, assign=True)
    restore_buffers(network, device)


def tensors_of(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A file's tensors whose names begin so, one after another.

    Raises ModelError for a file that is damaged.
    """
    read_header(path)  # before anything is mapped
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def place_of(stored: str, expected: Mapping[str, Tensor]) -> str | None:
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
