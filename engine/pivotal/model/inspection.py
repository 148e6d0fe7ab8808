"""What a model's files hold, and whether they are sound: `pivotal models info` and `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pivotal.errors import ModelError
from pivotal.model.families import Config, Family
from pivotal.model.load import Model
from pivotal.model.networks import empty_autoencoder, empty_text_encoder, empty_unet
from pivotal.model.safetensors_header import read_header
from pivotal.schedule import ScheduleConfig


@dataclass(frozen=True)
class Stored:
    """One weight file."""

    path: Path
    bytes: int
    tensors: int
    dtypes: tuple[str, ...]


def stored(files: Sequence[Path]) -> list[Stored]:
    """What weight files hold, by their headers. Raises ModelError for a damaged one."""
    found = []
    for path in files:
        entries = read_header(path).tensors.values()
        dtypes = tuple(sorted({entry.dtype for entry in entries}))
        found.append(Stored(path, path.stat().st_size, len(entries), dtypes))
    return found


def facts(family: Family, configs: Mapping[str, Config]) -> dict[str, Any]:
    """A model's facts by its configs: parameters of each network, sizes, the schedule."""
    networks = {
        "unet": empty_unet(configs["unet"]),
        **{
            name: empty_text_encoder(configs[name], projected=name == "text_encoder_2")
            for name in ("text_encoder", "text_encoder_2")
            if name in configs
        },
    }
    if "vae" in configs:
        networks["vae"] = empty_autoencoder(configs["vae"])
    schedule = ScheduleConfig.from_diffusers(configs["scheduler"])
    return {
        "family": family.name,
        "title": family.title,
        "prediction_type": schedule.prediction_type,
        "zero_terminal_snr": schedule.rescale_betas_zero_snr,
        "text_width": configs["unet"]["cross_attention_dim"],
        "parameters": {name: _parameters(each) for name, each in networks.items()},
    }


def require_sound(model: Model) -> dict[str, float]:
    """Check that every weight is finite, and that a prompt and a picture pass through all networks.

    Returns the largest absolute weight of each network. Raises ModelError for NaN or infinity;
    NonFiniteError comes from the pass.
    """
    networks: dict[str, nn.Module] = {
        "unet": model.unet,
        "vae": model.autoencoder.vae,
        **dict(zip(("text_encoder", "text_encoder_2"), model.text.encoders, strict=False)),
    }
    largest = {}
    for name, network in networks.items():
        largest[name] = 0.0
        for place, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                raise ModelError(f"{model.name}: {name} has NaN or infinity in {place}")
            if weight.numel():
                largest[name] = max(largest[name], float(weight.abs().max()))
    _pass_through(model)
    return largest


def _pass_through(model: Model) -> None:
    """The smallest picture that the UNet halves evenly, encoded, denoised once, and decoded."""
    scale = model.autoencoder.scale
    side = scale * 2 ** len(model.unet.unet.config.block_out_channels)
    conditioning = model.text.encode(["a photograph of a cat"], (side, side)).to(model.device)
    with torch.no_grad():
        latents = model.autoencoder.encode(torch.zeros(1, 3, side, side))
        added = [
            None if each is None else each.to(model.dtype)
            for each in (conditioning.pooled, conditioning.time_ids)
        ]
        prediction, _ = model.unet(
            latents.to(model.device, model.dtype),
            torch.full((1,), 500.0, device=model.device),
            conditioning.hidden_states.to(model.dtype),
            *added,
        )
        if not torch.isfinite(prediction).all():
            raise ModelError(f"{model.name}: the UNet's prediction holds NaN or infinity")
        model.autoencoder.decode(latents)


def _parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())
