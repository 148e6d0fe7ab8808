"""The one file that knows diffusers' UNet internals: attention with routes inside
UNet2DConditionModel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pivotal.attention_routes import AttentionRoutes
from pivotal.model.checkpointing import checkpointed
from pivotal_kernels.routed_attention import Impl, routed_attention, settle

BlockRunner = Callable[..., Any]
"""(function, structure, block, *inputs) to `function(block, *inputs)`, by whatever way.
Blocks of one structure, a text, compute the same of their weights and inputs."""


@dataclass(frozen=True)
class AttentionLayer:
    """Where an attention layer sits. Its index among its kind is its row in `AttentionRoutes`."""

    name: str  # the module's path in diffusers
    kind: Literal["self", "cross"]
    index: int
    downscale: int  # its maps have the latents' side divided by this


class RoutedUNet(nn.Module):
    """A UNet2DConditionModel whose every attention layer can follow `AttentionRoutes`.

    word_map_downscale: cross-attention layers at this fraction of the latents' side report word
    maps, averaged over layers and heads. impl: of routed cross-attention alone; self-attention and
    whatever has no routes are torch's fused attention.
    """

    def __init__(
        self, unet: UNet2DConditionModel, *, word_map_downscale: int, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        self.unet = unet
        self.layers = _attention_layers(unet)
        self.word_map_downscale = word_map_downscale
        self.attention: str = impl
        sources = {
            layer.name
            for layer in self.layers
            if layer.kind == "cross" and layer.downscale == word_map_downscale
        }
        if not sources:
            found = sorted({layer.downscale for layer in self.layers if layer.kind == "cross"})
            raise ValueError(
                f"word_map_downscale={word_map_downscale} has no cross-attention; "
                f"this UNet has it at {found}"
            )
        for layer in self.layers:
            processor = _RoutedProcessor(layer, reports=layer.name in sources, impl=impl)
            unet.get_submodule(layer.name).set_processor(processor)

    @property
    def self_layers(self) -> tuple[AttentionLayer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == "self")

    @property
    def cross_layers(self) -> tuple[AttentionLayer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == "cross")

    def use_attention(self, impl: Impl) -> str:
        """From now on run routed cross-attention by `impl`. Returns its name, settled for "auto".

        Raises ValueError for one that is unknown or can't serve this network where it is.
        """
        parameter = next(self.parameters())
        settled = ""
        for layer in self.cross_layers:
            attention: Any = self.unet.get_submodule(layer.name)
            width = attention.to_q.out_features // attention.heads
            settled = settle(
                impl, parameter.device.type, parameter.dtype, width, argument="attention"
            )
            attention.processor.impl = settled
        self.attention = settled
        return settled

    def checkpoint_gradients(self, wanted: bool) -> None:
        """Whether backward passes compute each block's activations again instead of keeping them:
        less memory, about a third more time, the same gradient (Chen et al. 2016,
        arXiv:1604.06174).
        """
        if wanted:
            self.unet.enable_gradient_checkpointing(checkpointed)
        else:
            self.unet.disable_gradient_checkpointing()

    def forward(
        self,
        latents: Tensor,  # [B, C, h, w], the network's dtype
        timesteps: Tensor,  # [B] float32
        hidden_states: Tensor,  # [B, L, D]
        pooled: Tensor | None = None,  # [B, P]
        time_ids: Tensor | None = None,  # [B, 6]
        routes: AttentionRoutes | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's prediction [B, C, h, w], and word maps [B, K, mh, mw] where there are
        routes.
        """
        attention: dict[str, Any] = {}
        reported: list[Tensor] = []
        if routes is not None:
            attention = {"routes": routes, "reported": reported}
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        prediction = self.unet(
            latents,
            timesteps,
            encoder_hidden_states=hidden_states,
            cross_attention_kwargs=attention,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        if routes is None:
            return prediction, None
        maps = torch.stack(reported)  # [layers, B, N, K]
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(dim=0)
        height, width = (-(-side // self.word_map_downscale) for side in latents.shape[-2:])
        return prediction, maps.transpose(1, 2).unflatten(-1, (height, width))


class _RoutedProcessor:
    """Attention of one layer, as diffusers' AttnProcessor2_0 computes it, with routes."""

    def __init__(self, layer: AttentionLayer, *, reports: bool, impl: Impl) -> None:
        self.layer = layer
        self.reports = reports
        self.impl = impl

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # [B, N, C]
        encoder_hidden_states: Tensor | None = None,  # [B, L, D]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        routes: AttentionRoutes | None = None,
        reported: list[Tensor] | None = None,
    ) -> Tensor:
        memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [B, H, N or L, d]
            for projected in (attn.to_q(hidden_states), attn.to_k(memory), attn.to_v(memory))
        )
        if routes is None:
            out = scaled_dot_product_attention(query, key, value, scale=attn.scale)
        elif self.layer.kind == "self":
            index = self.layer.index
            out = scaled_dot_product_attention(
                _taken(query, routes.self_queries[index]),
                _taken(key, routes.self_keys[index]),
                _taken(value, routes.self_values[index]),
                scale=attn.scale,
            )
        else:
            out, maps = routed_attention(
                query,
                key,
                value,
                routes.donors,
                routes.mix,
                routes.keep,
                routes.words if self.reports else None,
                gate=routes.cross_gate[self.layer.index],
                scale=attn.scale,
                impl=self.impl,
            )
            if maps is not None and reported is not None:
                reported.append(maps)
        merged = out.transpose(1, 2).flatten(2)  # [B, N, C]
        projected_back: Tensor = attn.to_out[1](attn.to_out[0](merged))
        return projected_back


def _taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """`tensor[rows]`, without a copy where a CPU sees that each row is its own."""
    looking = rows.device.type == "cpu" and not torch.compiler.is_compiling()
    if looking and rows.tolist() == list(range(len(rows))):
        return tensor
    return tensor[rows]


def _attention_layers(unet: UNet2DConditionModel) -> tuple[AttentionLayer, ...]:
    """All attention layers in the order the UNet runs them: down, middle, up.

    Raises ValueError for attention of a kind that routes do not reach; it would ignore an edit
    silently.
    """
    last = len(unet.down_blocks) - 1
    blocks = [(f"down_blocks.{i}", 2**i) for i in range(last + 1)]
    if unet.mid_block is not None:
        blocks.append(("mid_block", 2**last))
    blocks += [(f"up_blocks.{i}", 2 ** (last - i)) for i in range(last + 1)]
    layers: list[AttentionLayer] = []
    counts = {"self": 0, "cross": 0}
    for block, downscale in blocks:
        for path, module in unet.get_submodule(block).named_modules():
            if not hasattr(module, "set_processor"):
                continue
            name = f"{block}.{path}"
            plain = not (module.group_norm or module.spatial_norm or module.norm_cross)
            if not plain or module.residual_connection or module.rescale_output_factor != 1:
                raise ValueError(f"{name} is attention of a kind that routes do not reach")
            kind: Literal["self", "cross"] = "cross" if module.is_cross_attention else "self"
            layers.append(AttentionLayer(name, kind, counts[kind], downscale))
            counts[kind] += 1
    return tuple(layers)


def run_by_blocks(unet: RoutedUNet, run: BlockRunner) -> RoutedUNet:
    """A network on the same weights whose residual and transformer blocks `run` runs.

    A layer's own routes reach its block as the first and only ones, so that what was compiled for
    one block serves all of its structure.
    """
    weights = {id(each): each for each in (*unet.parameters(), *unet.buffers())}
    made: RoutedUNet = copy.deepcopy(unet, weights)
    places = {layer.name: layer.index for layer in made.layers}
    for name, block in list(made.unet.named_modules()):
        forward: Callable[..., Any]
        if isinstance(block, ResnetBlock2D):
            forward = partial(run, _residual, repr(block), block)
        elif isinstance(block, BasicTransformerBlock):
            for attention in (block.attn1, block.attn2):
                processor: Any = attention.processor
                reports = processor.reports
                processor.layer = replace(processor.layer, index=0)
            structure = f"{block!r}, {'with' if reports else 'without'} word maps"
            own = (places[f"{name}.attn1"], places[f"{name}.attn2"])
            forward = partial(
                _transformer_block, partial(run, _transformer, structure, block), *own
            )
        else:
            continue
        block.forward = forward
    return made


# As functions of their own: Dynamo does not trace a method that is read from one of these classes.
_FORWARD_RESIDUAL = ResnetBlock2D.forward
_FORWARD_TRANSFORMER = BasicTransformerBlock.forward


def _residual(block: ResnetBlock2D, hidden_states: Tensor, temb: Tensor) -> Tensor:
    out: Tensor = _FORWARD_RESIDUAL(block, hidden_states, temb)
    return out


def _transformer(
    block: BasicTransformerBlock,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    routes: AttentionRoutes | None,
) -> tuple[Tensor, list[Tensor]]:
    reported: list[Tensor] = []
    attention = {} if routes is None else {"routes": routes, "reported": reported}
    out = _FORWARD_TRANSFORMER(
        block,
        hidden_states,
        encoder_hidden_states=encoder_hidden_states,
        cross_attention_kwargs=attention,
    )
    return out, reported


def _transformer_block(
    run: Callable[..., tuple[Tensor, list[Tensor]]],
    self_index: int,
    cross_index: int,
    hidden_states: Tensor,
    attention_mask: None,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: None,
    timestep: None,
    cross_attention_kwargs: dict[str, Any],
    *others: None,
    **more: None,
) -> Tensor:
    """As BasicTransformerBlock.forward, whose arguments come by name, and by place where gradients
    are checkpointed.
    """
    unused = (attention_mask, encoder_attention_mask, timestep, *others, *more.values())
    assert not any(unused), "what a UNet2DConditionModel does not use"
    routes = cross_attention_kwargs.get("routes")
    if routes is not None:
        routes = routes.of_layers(self_index, cross_index)
    out, reported = run(hidden_states, encoder_hidden_states, routes)
    if reported:
        cross_attention_kwargs["reported"].extend(reported)
    return out
