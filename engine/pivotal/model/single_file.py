"""A checkpoint in one safetensors file, in the names it was trained with: offline, nothing asked.

`model.diffusion_model.*` is the UNet, `first_stage_model.*` the autoencoder, and
`cond_stage_model.*` or SDXL's `conditioner.embedders.*` the text towers. Configs are read off the
shapes; the vocabulary is every CLIP's, which no such file holds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotal.errors import ModelError
from pivotal.model.families import (
    Architecture,
    Config,
    Family,
    family_of,
    warn_if_few_steps,
)
from pivotal.model.safetensors_header import Header, read_header
from pivotal.model.single_file_config import (
    AUTOENCODERS,
    CLIP_L,
    OPEN_CLIP,
    UNET,
    autoencoder_config,
    clip_config,
    open_clip_config,
    require_model,
    under,
    unet_config,
)
from pivotal.model.weights import tensors_of

logger = logging.getLogger(__name__)

# `global_step` of the SD 2.x base model, which predicts eps, as diffusers knows
_EPS_STEP = 875_000
_EPS_SIDE = 64  # latents of that model; those that predict v are trained at the family's side
_SPEC = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}


@dataclass(frozen=True)
class SingleFile:
    """A file that has all a model needs, but perhaps an autoencoder. No weight has been read."""

    path: Path
    family: Family
    configs: Mapping[str, Config]  # by component, the scheduler's too
    prefixes: Mapping[str, str]  # of the names of each network's weights


def open_single_file(
    path: Path, family: Family | None = None, prediction_type: str | None = None
) -> SingleFile:
    """What a file holds, from its header.

    prediction_type: what the network predicts, where the file does not say or says it wrong.
    Raises ModelError for a damaged file, for what is no Stable Diffusion model that pivotal runs,
    and for a family that is unknown or not the given one.
    """
    header = read_header(path)
    require_model(header.shapes, str(path))
    warn_if_few_steps(str(path), f"{path.stem} {header.metadata.get('modelspec.title', '')}")
    try:
        unet = unet_config(under(header.shapes, UNET))
        family = family_of(unet, family)
        published = family.architecture
        if published is None:
            raise ModelError(f"family {family.name!r} has no single-file format")
        configs, prefixes = _others(header, family, published)
    except ModelError as error:
        raise ModelError(f"{path} can't be loaded: {error}") from error
    if family.time_ids:
        pooled = configs["text_encoder_2"]["projection_dim"]
        unet["addition_time_embed_dim"] = (
            unet["projection_class_embeddings_input_dim"] - pooled
        ) // 6  # the sizes of the original, the crop and the target
    scheduler = _scheduler(path, header, family, published, prediction_type)
    side = published.unet["sample_size"]
    if family.name == "sd2" and scheduler["prediction_type"] == "epsilon":
        side = _EPS_SIDE
    configs |= {"unet": {**unet, "sample_size": side}, "scheduler": scheduler}
    return SingleFile(path, family, configs, {"unet": UNET, **prefixes})


def _others(
    header: Header, family: Family, published: Architecture
) -> tuple[dict[str, Config], dict[str, str]]:
    """The configs and the prefixes of all networks but the UNet."""
    configs: dict[str, Config] = {}
    prefixes: dict[str, str] = {}
    for prefix in AUTOENCODERS[:-1]:
        if shapes := under(header.shapes, prefix):
            factor = float(published.autoencoder["scaling_factor"])
            configs["vae"], prefixes["vae"] = autoencoder_config(shapes, factor), prefix
            break
    for name, known in zip(
        ("text_encoder", "text_encoder_2"), published.text_encoders, strict=False
    ):
        projected = name == "text_encoder_2"
        plain = [] if projected else [each for each in CLIP_L if under(header.shapes, each)]
        fused = [each for each in OPEN_CLIP if under(header.shapes, each)]
        if plain:
            configs[name] = clip_config(under(header.shapes, plain[0]), known)
            prefixes[name] = plain[0]
        elif fused:
            shapes = under(header.shapes, fused[0])
            configs[name] = open_clip_config(shapes, known, projected=projected)
            prefixes[name] = fused[0]
        else:
            places = ", ".join(f"{each}*" for each in (*CLIP_L, *OPEN_CLIP))
            raise ModelError(f"it has no {name} ({places}), and {family.title} needs one")
    return configs, prefixes


def _scheduler(
    path: Path, header: Header, family: Family, published: Architecture, asked: str | None
) -> dict[str, Any]:
    """The family's schedule, with what the network predicts: as asked, or as the file says.

    Files say so by an entry `v_pred` (and `ztsnr`, for betas rescaled to zero terminal SNR), by
    metadata, or by `global_step`; an SD 2.x file that says nothing is taken to predict v, with a
    warning.
    """
    scheduler = dict(published.scheduler)
    metadata = header.metadata.get("modelspec.prediction_type", "").lower()
    if asked is not None:
        kind = asked
    elif "v_pred" in header.tensors:
        kind = "v_prediction"
    elif metadata in _SPEC:
        kind = _SPEC[metadata]
    elif family.name != "sd2" or _global_step(path, header) == _EPS_STEP:
        kind = "epsilon"
    else:
        kind = "v_prediction"
        if "global_step" not in header.tensors:
            logger.warning(
                "%s does not say what it predicts; v_prediction is assumed, as of SD 2.x at 768 "
                "pixels; say prediction_type 'epsilon' for a base model at 512",
                path,
            )
    scheduler["prediction_type"] = kind
    if "ztsnr" in header.tensors:
        scheduler["rescale_betas_zero_snr"] = True
    return scheduler


def _global_step(path: Path, header: Header) -> int | None:
    if header.shapes.get("global_step") not in ((), (1,)):
        return None
    return next(int(tensor) for name, tensor in tensors_of(path) if name == "global_step")
