"""The parts of a model: networks filled from files or with random weights, and what goes with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pivotal.errors import ModelError
from pivotal.model.families import Config, Family, family_of
from pivotal.model.fingerprint import folder_fingerprint, random_fingerprint
from pivotal.model.folder import ModelFolder
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.model.random_weights import RandomWeights
from pivotal.model.tokenizers import ClipTokenizer, StandInTokenizer, Tokenizer
from pivotal.model.weights import fill
from pivotal.runtime.precision import Precision


@dataclass(frozen=True)
class Parts:
    """What a model is made of. The networks are on their device, with their weights."""

    family: Family
    unet: Any
    autoencoder: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Tokenizer, ...]
    scheduler: Config
    zero_empty: bool  # the empty prompt is all zeros
    fingerprint: str

    def __post_init__(self) -> None:
        """Raises ModelError for parts that don't fit together."""
        expected = self.unet.config.cross_attention_dim
        width = sum(encoder.config.hidden_size for encoder in self.text_encoders)
        if width != expected:
            raise ModelError(
                f"the text encoders give {width} channels and the UNet takes {expected}"
            )
        channels, taken = self.autoencoder.config.latent_channels, self.unet.config.in_channels
        if channels != taken:
            raise ModelError(f"the autoencoder has {channels} channels and the UNet takes {taken}")


def folder_parts(
    folder: ModelFolder, family: Family | None, device: torch.device, precision: Precision
) -> Parts:
    """Read a model folder.

    Raises ModelError for a family that is unknown or not the given one, and for damaged files.
    """
    configs = folder.configs
    family = family_of(configs["unet"], family)
    names = [name for name in ("text_encoder", "text_encoder_2") if name in configs]
    if len(names) != family.text_encoders:
        raise ModelError(
            f"{folder.root} has {len(names)} text encoders, and family {family.name} has "
            f"{family.text_encoders}"
        )
    unet, autoencoder = empty_unet(configs["unet"]), empty_autoencoder(configs["vae"])
    encoders = _empty_encoders([configs[name] for name in names])
    tokenizers = [
        ClipTokenizer(path, limit=encoder.config.max_position_embeddings)
        for path, encoder in zip(folder.tokenizers, encoders, strict=True)
    ]
    fingerprint = folder_fingerprint(folder)  # reads every header: damage shows before the work
    fill(autoencoder, folder.weights["vae"], "vae", device=device, dtype=precision.autoencoder)
    for name, network in zip(("unet", *names), (unet, *encoders), strict=True):
        fill(network, folder.weights[name], name, device=device, dtype=precision.networks)
    return Parts(
        family,
        unet,
        autoencoder,
        tuple(encoders),
        tuple(tokenizers),
        configs["scheduler"],
        zero_empty=family.time_ids and bool(folder.index.get("force_zeros_for_empty_prompt", True)),
        fingerprint=fingerprint,
    )


def random_parts(family: Family, seed: int, device: torch.device, precision: Precision) -> Parts:
    """A family's true architecture with seeded random weights and a stand-in tokenizer.

    Raises ValueError for a family without a published architecture.
    """
    published = family.architecture
    if published is None:
        raise ValueError(f"family {family.name!r} has no published architecture")
    unet, autoencoder = empty_unet(published.unet), empty_autoencoder(published.autoencoder)
    encoders = _empty_encoders(published.text_encoders)
    weights = RandomWeights(seed)
    weights.fill(autoencoder, device=device, dtype=precision.autoencoder)
    for network in (unet, *encoders):
        weights.fill(network, device=device, dtype=precision.networks)
    tokenizers = [
        StandInTokenizer(encoder.config.vocab_size, encoder.config.max_position_embeddings)
        for encoder in encoders
    ]
    return Parts(
        family,
        unet,
        autoencoder,
        tuple(encoders),
        tuple(tokenizers),
        published.scheduler,
        zero_empty=family.time_ids,
        fingerprint=random_fingerprint(family.name, seed),
    )


def _empty_encoders(configs: Sequence[Config]) -> list[Any]:
    """The second text encoder projects its pooled vector."""
    return [
        empty_text_encoder(config, projected=index == 1) for index, config in enumerate(configs)
    ]
