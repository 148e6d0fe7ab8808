"""What a single-file checkpoint is, from the names and shapes in its header: no weight is read.

Shapes give widths, depths and where attention stands. What they do not show is the family's: how
many heads, which activation, the schedule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pivotal.errors import ModelError
from pivotal.model.families import Config

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
AUTOENCODERS = ("first_stage_model.", "vae.", "")
CLIP_L = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
_REFINER = "conditioner.embedders.0.model."
_HEAD = 64  # channels, in CLIP's towers and in UNets with linear projections (SD 2.x, SDXL)
_HEADS = 8  # of SD 1.x's UNets at every level
_FOREIGN = {
    "double_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    "unet.mid_block.": "a model in diffusers' names, which belongs into a folder",
    "mid_block.": "a part of a diffusers folder",
    "control_model.": "a ControlNet",
    "encoder.": "an autoencoder alone, which vae= takes",
    "lora_": "a LoRA, which lora= takes",
    "emb_params": "a textual inversion, which embedding= takes",
    "clip_l": "a textual inversion, which embedding= takes",
}


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """A UNet2DConditionModel's config from latent-diffusion's names, less the prefix.

    Raises ModelError for a network of another kind, or one that is not all there.
    """
    channels, layers, depths = _levels(shapes)
    middle = _depth(shapes, "middle_block.1.")
    if len(set(layers)) != 1 or not middle:
        raise ModelError(
            f"its UNet has {layers} residual blocks at its levels and {middle} transformer blocks "
            "in its middle, as no Stable Diffusion model has"
        )
    attends = [depth > 0 for depth in depths]
    down = ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends]
    up = ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)]
    words = [name for name in shapes if name.endswith("attn2.to_k.weight")]
    linear = len(_shape(shapes, "middle_block.1.proj_in.weight")) == 2
    return {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers[0],
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "transformer_layers_per_block": _transformer_layers(depths, middle),
        "cross_attention_dim": _shape(shapes, words[0])[1] if words else None,
        "use_linear_projection": linear,
        "attention_head_dim": tuple(max(1, each // _HEAD) for each in channels)
        if linear
        else _HEADS,
        **_additions(shapes),
    }


def autoencoder_config(shapes: Shapes, scaling_factor: float) -> dict[str, Any]:
    """An AutoencoderKL's config from latent-diffusion's names, less the prefix.

    Raises ModelError for one that is not all there.
    """
    levels = _count(shapes, "encoder.down.")
    if not levels:
        raise ModelError("its autoencoder lacks encoder.down.0")
    blocks = _count(shapes, "encoder.down.0.block.")
    return {
        "block_out_channels": tuple(
            _shape(shapes, f"encoder.down.{level}.block.0.conv2.weight")[0]
            for level in range(levels)
        ),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": blocks,
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "scaling_factor": scaling_factor,
    }


def clip_config(shapes: Shapes, published: Config) -> dict[str, Any]:
    """A text tower's config from transformers' names, with or without `text_model.`."""
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    layers = _count(bare, "encoder.layers.")
    vocabulary, width = _pair(bare, "embeddings.token_embedding.weight")
    positions = _shape(bare, "embeddings.position_embedding.weight")[0]
    inner = _shape(bare, "encoder.layers.0.mlp.fc1.weight")[0]
    return _text(published, vocabulary, width, positions, inner, layers)


def open_clip_config(shapes: Shapes, published: Config, *, projected: bool) -> dict[str, Any]:
    """A text tower's config from OpenCLIP's names, less the prefix.

    SD 2.x takes the penultimate layer's output, so that its last layer is left out, here or, in
    files that were written from diffusers' folders, there; SDXL, which is `projected`, keeps it for
    the pooled vector.
    """
    layers = _count(shapes, "transformer.resblocks.")
    if not projected and layers != published["num_hidden_layers"]:
        layers -= 1
    vocabulary, width = _pair(shapes, "token_embedding.weight")
    positions = _shape(shapes, "positional_embedding")[0]
    inner = _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0]
    made = _text(published, vocabulary, width, positions, inner, layers)
    if projected:
        made["projection_dim"] = _shape(shapes, "text_projection")[1]
    return made


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes whose names begin so, less that."""
    return {name[len(prefix) :]: each for name, each in shapes.items() if name.startswith(prefix)}


def require_model(shapes: Shapes, where: str) -> None:
    """Raise ModelError for a file that holds no Stable Diffusion model that pivotal runs."""
    if any(name.startswith(_REFINER) for name in shapes):
        raise ModelError(
            f"{where} is SDXL's refiner, which only finishes what the base model began; give the "
            "base model"
        )
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        raise ModelError(
            f"{where} is trained on EDM's noise levels (Playground 2.5, CosXL), which pivotal does "
            "not sample on"
        )
    if UNET + "input_blocks.0.0.weight" in shapes:
        return
    bare = {name.removeprefix(UNET) for name in shapes}
    known = (
        what for start, what in _FOREIGN.items() if any(each.startswith(start) for each in bare)
    )
    what = next(known, f"nothing that pivotal knows (first {next(iter(shapes), 'no tensor')})")
    raise ModelError(
        f"{where} holds no Stable Diffusion model ({UNET}input_blocks.0.0.weight is missing): it "
        f"is {what}"
    )


def _levels(shapes: Shapes) -> tuple[list[int], list[int], list[int]]:
    """Of each level on the way down: channels, residual blocks, transformer blocks in each."""
    channels, layers, depths = [], [0], [0]
    for number in range(1, _count(shapes, "input_blocks.")):
        block = f"input_blocks.{number}."
        if f"{block}0.op.weight" in shapes:
            layers.append(0)
            depths.append(0)
            continue
        width = _shape(shapes, f"{block}0.out_layers.3.weight")[0]
        if not layers[-1]:
            channels.append(width)
        layers[-1] += 1
        depths[-1] = _depth(shapes, f"{block}1.")
    if len(channels) != len(layers):
        raise ModelError("its UNet has a level without residual blocks")
    return channels, layers, depths


def _transformer_layers(depths: list[int], middle: int) -> int | tuple[int, ...]:
    """As diffusers says it; the middle has as many as the last level, or would have."""
    every = [depth or 1 for depth in depths[:-1]] + [depths[-1] or middle]
    return 1 if set(every) == {1} else tuple(every)


def _additions(shapes: Shapes) -> dict[str, Any]:
    """What else conditions the network: SDXL's sizes, and what is then refused."""
    more: dict[str, Any] = {}
    if "label_emb.0.0.weight" in shapes:
        more["addition_embed_type"] = "text_time"
        more["projection_class_embeddings_input_dim"] = _shape(shapes, "label_emb.0.0.weight")[1]
    if "label_emb.weight" in shapes:
        more["num_class_embeds"] = _shape(shapes, "label_emb.weight")[0]
    if "time_embed.cond_proj.weight" in shapes:
        more["time_cond_proj_dim"] = _shape(shapes, "time_embed.cond_proj.weight")[1]
    return more


def _text(
    published: Config, vocabulary: int, width: int, positions: int, inner: int, layers: int
) -> dict[str, Any]:
    return {
        **published,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD),
    }


def _depth(shapes: Shapes, place: str) -> int:
    return _count(shapes, f"{place}transformer_blocks.")


def _count(shapes: Iterable[str], prefix: str) -> int:
    """How many numbers from 0 follow a prefix."""
    number = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    found = {int(match[1]) for name in shapes if (match := number.match(name))}
    if found and max(found) + 1 != len(found):
        missing = min(set(range(max(found))) - found)
        raise ModelError(f"it lacks {prefix}{missing}")
    return len(found)


def _pair(shapes: Shapes, name: str) -> tuple[int, int]:
    shape = _shape(shapes, name)
    return shape[0], shape[1]


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Raises ModelError for a weight that is missing, or that is no matrix or kernel."""
    if name not in shapes:
        raise ModelError(f"it lacks {name}")
    shape = shapes[name]
    if len(shape) < 2 or 0 in shape:
        raise ModelError(f"{name} has shape {list(shape)}; at least two sides are expected")
    return shape
