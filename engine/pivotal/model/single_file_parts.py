"""The networks of a single-file checkpoint, filled, with the tokenizers that go with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotal.errors import ModelError
from pivotal.model.families import Config
from pivotal.model.fingerprint import file_fingerprint
from pivotal.model.ldm_names import autoencoder_name, open_clip_name, unet_name
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.model.parts import Parts
from pivotal.model.safetensors_header import read_header
from pivotal.model.single_file import SingleFile
from pivotal.model.single_file_config import (
    AUTOENCODERS,
    CLIP_L,
    OPEN_CLIP,
    autoencoder_config,
    under,
)
from pivotal.model.tokenizers import ClipTokenizer
from pivotal.model.vocabulary import END, clip_vocabulary
from pivotal.model.weights import Found, place_of, put, tensors_of
from pivotal.runtime.precision import Precision

_OPEN_CLIP_PADDING = "!"  # token 0, which OpenCLIP was trained to pad with; CLIP pads with its end
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")

Take = Callable[[Tensor], Tensor]
Places = Mapping[str, Sequence[tuple[str, Take]]]
"""By stored name: the network's names that it fills, and what of it each takes."""


def single_file_parts(
    file: SingleFile,
    tokenizer: Path | None,
    autoencoder: Any | None,
    device: torch.device,
    precision: Precision,
) -> Parts:
    """Read the file's weights.

    tokenizer: a folder with CLIP's vocabulary, or a model's; open_clip_torch's if None.
    autoencoder: another one than the file's. Raises ModelError for damage, and for what is missing.
    """
    with _naming(file.path):
        return _parts(file, tokenizer, autoencoder, device, precision)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What is wrong is wrong with this file."""
    try:
        yield
    except ModelError as error:
        if str(path) in str(error):
            raise
        raise ModelError(f"{path} can't be loaded: {error}") from error


def _parts(
    file: SingleFile,
    tokenizer: Path | None,
    autoencoder: Any | None,
    device: torch.device,
    precision: Precision,
) -> Parts:
    configs = file.configs
    unet = empty_unet(configs["unet"])
    encoders = {
        name: empty_text_encoder(configs[name], projected=name == "text_encoder_2")
        for name in ("text_encoder", "text_encoder_2")
        if name in configs
    }
    tokenizers = _tokenizers(tokenizer, configs, file.prefixes)
    networks: dict[str, tuple[Any, Places | None]] = {"unet": (unet, _unet_places(unet))}
    networks |= {
        name: (each, _text_places(each, file.prefixes[name])) for name, each in encoders.items()
    }
    if autoencoder is None:
        if "vae" not in configs:
            raise ModelError(f"{file.path} has no autoencoder; say vae= and its file or folder")
        autoencoder = empty_autoencoder(configs["vae"])
        networks["vae"] = (autoencoder, _autoencoder_places(autoencoder))
    fingerprint = file_fingerprint(file.path, configs, [each.vocabulary for each in tokenizers])
    for name, (network, places) in networks.items():
        dtype = precision.autoencoder if name == "vae" else precision.networks
        found = _found(file.path, file.prefixes[name], places, network)
        put(network, found, name, device=device, dtype=dtype, whole=name == "unet")
    return Parts(
        file.family,
        unet,
        autoencoder,
        tuple(encoders.values()),
        tokenizers,
        configs["scheduler"],
        zero_empty=file.family.time_ids,
        fingerprint=fingerprint,
    )


def autoencoder_of_file(
    path: Path, scaling_factor: float, device: torch.device, precision: Precision
) -> Any:
    """An AutoencoderKL from a file of its own, or out of a checkpoint, in either naming.

    scaling_factor: of the model that it is for; such a file does not hold it.
    """
    header = read_header(path)
    prefix = next(
        (each for each in AUTOENCODERS if f"{each}encoder.conv_in.weight" in header.tensors), None
    )
    if prefix is None:
        raise ModelError(f"{path} holds no autoencoder (encoder.conv_in.weight is missing)")
    shapes = under(header.shapes, prefix)
    if any(name.startswith("encoder.mid_block.") for name in shapes):
        raise ModelError(
            f"{path} is an autoencoder in diffusers' names; give the folder that it stands in with "
            "its config.json"
        )
    with _naming(path):
        network = empty_autoencoder(autoencoder_config(shapes, scaling_factor))
        found = _found(path, prefix, _autoencoder_places(network), network)
        put(network, found, "vae", device=device, dtype=precision.autoencoder)
    return network


def _tokenizers(
    folder: Path | None, configs: Mapping[str, Config], prefixes: Mapping[str, str]
) -> tuple[ClipTokenizer, ...]:
    """A tokenizer for each text encoder. Raises ModelError for a vocabulary of another size."""
    made = []
    for name in ("text_encoder", "text_encoder_2"):
        if name not in configs:
            continue
        source: Any = folder
        if folder is None:
            source = clip_vocabulary()
        else:
            inside = [folder / name.replace("text_encoder", "tokenizer"), folder / "tokenizer"]
            source = next((each for each in inside if each.is_dir()), folder)
        tokenizer = ClipTokenizer(
            source,
            int(configs[name]["max_position_embeddings"]),
            padding=_OPEN_CLIP_PADDING if prefixes[name] in OPEN_CLIP else END,
        )
        size, known = int(configs[name]["vocab_size"]), len(tokenizer.vocabulary)
        if known != size:
            raise ModelError(
                f"the vocabulary has {known} tokens, and {name} has embeddings for {size}; say "
                "tokenizer= and the folder of the one that it was trained with"
            )
        made.append(tokenizer)
    return tuple(made)


def _unet_places(network: Any) -> Places:
    return {unet_name(name, network.config): [(name, _whole)] for name in network.state_dict()}


def _autoencoder_places(network: Any) -> Places:
    levels = len(network.config.block_out_channels)
    expected = network.state_dict()
    return {
        autoencoder_name(name, levels): [(name, _matrix if tensor.ndim == 2 else _whole)]
        for name, tensor in expected.items()
    }


def _text_places(network: Any, prefix: str) -> Places | None:
    """None where the names are transformers' own."""
    if prefix in CLIP_L:
        return None
    places: dict[str, list[tuple[str, Take]]] = {}
    for name in network.state_dict():
        stored, third = open_clip_name(name)
        take = _whole if third is None else _THIRDS[third]
        if stored == "text_projection":
            take = _transposed
        places.setdefault(stored, []).append((name, take))
    return places


def _left_out(name: str, network: Any) -> bool:
    """What an OpenCLIP tower holds that no image model uses: SD 2.x's last layer, for one."""
    match = _RESBLOCK.match(name)
    if match is not None:
        return int(match[1]) >= int(network.config.num_hidden_layers)
    return name in ("logit_scale", "text_projection", "attn_mask")


def _found(path: Path, prefix: str, places: Places | None, network: Any) -> Iterator[Found]:
    """The file's weights for a network, each with its place there."""
    expected = network.state_dict()
    for stored, tensor in tensors_of(path, prefix):
        name = stored[len(prefix) :]
        if places is None:
            yield Found(place_of(name, expected), stored, path, tensor)
        elif name in places:
            for place, take in places[name]:
                yield Found(place, stored, path, take(tensor))
        elif prefix not in OPEN_CLIP or not _left_out(name, network):
            yield Found(None, stored, path, tensor)


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _matrix(tensor: Tensor) -> Tensor:
    """A kernel of one pixel as a matrix: attention in the autoencoder was a convolution."""
    return tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _third(number: int) -> Take:
    return lambda tensor: (
        tensor.chunk(3)[number] if tensor.ndim and len(tensor) % 3 == 0 else tensor
    )


_THIRDS = tuple(_third(number) for number in range(3))
