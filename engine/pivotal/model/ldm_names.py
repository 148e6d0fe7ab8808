"""Names of weights in single-file checkpoints, from diffusers' and transformers' names.

Single files keep the names of the code that trained them: latent-diffusion's UNet and autoencoder
(github.com/CompVis/latent-diffusion), and OpenCLIP's text tower
(github.com/mlfoundations/open_clip). A name of a module is translated as one of its weights is.
"""

from __future__ import annotations

import re
from typing import Any

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ENDS = {"conv_norm_out": "norm_out"}
_VAE_RESIDUAL = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_FUSED = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def unet_name(name: str, config: Any) -> str:
    """latent-diffusion's name of a UNet's weight or module, as `output_blocks.2.1.conv.weight`.

    config: the UNet's, for its layers a block and where its upsamplers stand.
    """
    layers = int(config["layers_per_block"])
    if match := _MIDDLE.fullmatch(name):
        kind, number, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * number}.{_renamed(rest, _RESIDUAL)}"
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _renamed(name, _UNET_ENDS)
    way, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if way == "down":
        first, stack = 1 + level * (layers + 1), "input_blocks"
    else:
        first, stack = level * (layers + 1), "output_blocks"
    if kind == "resnets":
        return f"{stack}.{first + number}.0.{_renamed(rest, _RESIDUAL)}"
    if kind == "attentions":
        return f"{stack}.{first + number}.1.{rest}"
    if kind == "downsamplers":
        return f"{stack}.{first + layers}.0.{_renamed(rest, {'conv': 'op'})}"
    attends = config["up_block_types"][level].startswith("CrossAttn")
    return f"{stack}.{first + layers}.{2 if attends else 1}.{rest}"


def autoencoder_name(name: str, levels: int) -> str:
    """latent-diffusion's name of an autoencoder's weight. levels: of its encoder."""
    tower, _, inside = name.partition(".")
    if tower not in ("encoder", "decoder"):
        return name
    if match := _MIDDLE.fullmatch(inside):
        if match[1] == "attentions":
            return f"{tower}.mid.attn_1.{_renamed(match[3], _VAE_ATTENTION)}"
        return f"{tower}.mid.block_{int(match[2]) + 1}.{_renamed(match[3], _VAE_RESIDUAL)}"
    match = _BLOCK.fullmatch(inside)
    if match is None:
        return f"{tower}.{_renamed(inside, _VAE_ENDS)}"
    way, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    place = level if way == "down" else levels - 1 - level  # both count from the finest
    if kind == "resnets":
        return f"{tower}.{way}.{place}.block.{number}.{_renamed(rest, _VAE_RESIDUAL)}"
    return f"{tower}.{way}.{place}.{way}sample.{rest}"


def open_clip_name(name: str) -> tuple[str, int | None]:
    """OpenCLIP's name of a text tower's weight, and which third of that it is, if of three.

    OpenCLIP keeps the projections of queries, keys and values as one; its text projection is the
    transpose of transformers'.
    """
    name = name.removeprefix("text_model.")
    match = _LAYER.fullmatch(name)
    if match is None:
        return _renamed(name, _OPEN_CLIP_ENDS), None
    block = f"transformer.resblocks.{match[1]}"
    if fused := _FUSED.fullmatch(match[2]):
        return f"{block}.attn.in_proj_{fused[2]}", "qkv".index(fused[1])
    return f"{block}.{_renamed(match[2], _OPEN_CLIP_LAYER)}", None


def _renamed(name: str, names: dict[str, str]) -> str:
    """The name with its beginning, whole words of it, replaced as the table says."""
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
