"""Facts about the model families, in this one place: how to tell them apart, their sizes and
defaults, and the published architectures for `random:<family>`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pivotal.errors import ModelError

logger = logging.getLogger(__name__)

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The config files of a published model, less what equals the library's defaults."""

    unet: Config
    autoencoder: Config
    text_encoders: tuple[Config, ...]
    scheduler: Config


@dataclass(frozen=True)
class Family:
    """What all checkpoints of one kind have in common.

    word_map_downscale: cross-attention at this fraction of the latents' side gives word maps.
    self_injection_downscale: an edit injects self-attention in layers whose side is at most the
    latents' over this.
    time_ids: two text encoders, a pooled vector and sizes condition the network (SDXL).
    """

    name: str
    title: str
    latent_scale: int  # pixels per latent, along a side
    default_size: tuple[int, int]  # pixels (height, width)
    word_map_downscale: int = 4
    self_injection_downscale: int = 2
    guidance_scale: float = 7.5
    time_ids: bool = False
    architecture: Architecture | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.latent_scale, self.word_map_downscale, self.self_injection_downscale) < 1:
            raise ValueError(f"family {self.name}: scales are at least 1")
        if any(side < 1 or side % self.latent_scale for side in self.default_size):
            raise ValueError(
                f"family {self.name}: default_size={self.default_size} is no multiple of "
                f"{self.latent_scale}"
            )
        if self.guidance_scale < 1:
            raise ValueError(f"family {self.name}: guidance_scale={self.guidance_scale} is below 1")

    @property
    def text_encoders(self) -> int:
        """How many text encoders a checkpoint has."""
        return 2 if self.time_ids else 1


def _autoencoder(side: int, scaling_factor: float) -> Config:
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": side,
        "scaling_factor": scaling_factor,
    }


def _text(width: int, layers: int, heads: int, act: str, projection: int) -> Config:
    return {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": projection,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; transformers then pools at the largest id
        "pad_token_id": 1,
    }


def _scheduler(kind: str, **more: Any) -> Config:
    return {
        "_class_name": kind,
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        **more,
    }


_CLIP_L = _text(768, 12, 12, "quick_gelu", 768)

_SD15 = Architecture(
    unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    autoencoder=_autoencoder(512, 0.18215),
    text_encoders=(_CLIP_L,),
    scheduler=_scheduler("PNDMScheduler"),
)
_SD21 = Architecture(
    unet={
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),  # heads, in spite of the name
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    autoencoder=_autoencoder(768, 0.18215),
    text_encoders=(_text(1024, 23, 16, "gelu", 512),),
    scheduler=_scheduler("DDIMScheduler", prediction_type="v_prediction"),
)
_SDXL = Architecture(
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    autoencoder=_autoencoder(1024, 0.13025),
    text_encoders=(_CLIP_L, _text(1280, 32, 20, "gelu", 1280)),
    scheduler=_scheduler("EulerDiscreteScheduler"),
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("sd1", "Stable Diffusion 1.x", 8, (512, 512), architecture=_SD15),
            Family("sd2", "Stable Diffusion 2.x", 8, (768, 768), architecture=_SD21),
            Family(
                "sdxl",
                "Stable Diffusion XL",
                8,
                (1024, 1024),
                guidance_scale=5.0,
                time_ids=True,
                architecture=_SDXL,
            ),
            # The bundled model's latents are 16 x 16: its finest maps are SD 1.x's word maps, and
            # coarser than the coarsest self-attention that an edit of SD 1.x leaves alone.
            Family(
                "shapes",
                "shapes",
                4,
                (64, 64),
                word_map_downscale=1,
                self_injection_downscale=1,
            ),
        )
    }
)

_FEW_STEPS = re.compile(
    r"turbo|lightning|hyper[-_ ]?sd|(?<![a-z])(?:lcm|dmd2?)(?![a-z])", re.IGNORECASE
)
_SPECIAL_INPUTS = {9: "an inpainting model", 8: "an InstructPix2Pix model", 5: "a depth model"}


def family_named(name: str) -> Family:
    """Raises ValueError naming the accepted families."""
    if name not in FAMILIES:
        raise ValueError(f"family={name!r} is unknown; accepted are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(unet_config: Config, family: Family | None = None) -> Family:
    """The family of a UNet by its config, or the given one if the config does not contradict it.

    Raises ModelError for a network that pivotal can't run or does not know.
    """
    _refuse_special(unet_config)
    time_ids = unet_config.get("addition_embed_type") == "text_time"
    if family is not None:
        if family.time_ids != time_ids:
            raise ModelError(
                f"this UNet {'needs' if time_ids else 'takes no'} SDXL's time ids, which does not "
                f"fit family {family.name!r}; leave family out or name another"
            )
        return family
    width = unet_config.get("cross_attention_dim")
    if time_ids and width == 2048:
        return FAMILIES["sdxl"]
    if not time_ids and width in (768, 1024):
        return FAMILIES["sd1" if width == 768 else "sd2"]
    if not time_ids and width == 128 and unet_config.get("sample_size") == 16:
        return FAMILIES["shapes"]
    raise ModelError(
        f"no known family has cross_attention_dim={width!r}{' with time ids' * time_ids}; known "
        f"are {', '.join(FAMILIES)} (for a model of your own, say family=)"
    )


def warn_if_few_steps(where: str, called: str) -> None:
    """Log a warning where a model is called as those are that were distilled to few steps."""
    if match := _FEW_STEPS.search(called):
        logger.warning(
            "%s is called %r: a model distilled to few steps looks like its parent in every name "
            "and shape, but its noise levels can't be inverted; use the model it was made from",
            where,
            match[0],
        )


def _refuse_special(config: Config) -> None:
    channels = config.get("in_channels", 4)
    if channels != 4:
        what = _SPECIAL_INPUTS.get(channels, "of a kind unknown to pivotal")
        raise ModelError(
            f"the UNet takes {channels} input channels, so it is {what}; pivotal inverts with "
            "plain text-to-image models, which take 4"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise ModelError(
            "the UNet takes the guidance scale as an input, so it is distilled to few steps (LCM); "
            "pivotal needs the model it was distilled from"
        )
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise ModelError(f"the UNet has {name}={config[name]!r}, which no known family has")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ModelError(
            f"the UNet has addition_embed_type={config['addition_embed_type']!r}, which no known "
            "family has"
        )
