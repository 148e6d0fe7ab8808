"""Networks by their config, without memory for weights: on the meta device, until filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pivotal.errors import ModelError

Config = Mapping[str, Any]


def empty_unet(config: Config) -> Any:
    """A UNet2DConditionModel. Raises ModelError for a config that does not describe one."""
    from diffusers import UNet2DConditionModel

    return _on_meta(lambda: UNet2DConditionModel.from_config(dict(config)), "unet")


def empty_autoencoder(config: Config) -> Any:
    """An AutoencoderKL. Raises ModelError for a config that does not describe one."""
    from diffusers import AutoencoderKL

    return _on_meta(lambda: AutoencoderKL.from_config(dict(config)), "vae")


def empty_text_encoder(config: Config, *, projected: bool) -> Any:
    """A CLIP text tower, with the projection of its pooled vector or without.

    Raises ModelError for a config that does not describe one.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return _on_meta(lambda: kind(CLIPTextConfig.from_dict(dict(config))), "text encoder")


def restore_buffers(network: nn.Module, device: torch.device) -> None:
    """Give the buffers that no checkpoint holds their values: CLIP's position ids."""
    stored = network.state_dict()
    for name, buffer in list(network.named_buffers()):
        if name in stored:
            continue
        path, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise RuntimeError(f"the value of buffer {name} is unknown")
        positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        network.get_submodule(path).register_buffer(leaf, positions, persistent=False)


def _on_meta(make: Callable[[], Any], what: str) -> Any:
    try:
        with torch.device("meta"):
            return make()
    except Exception as error:  # whatever a constructor makes of a wrong config
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"the {what} can't be built as its config says: {type(error).__name__}: {reason}"
        ) from error
