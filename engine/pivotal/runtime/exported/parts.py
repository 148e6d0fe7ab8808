"""The networks of a model to export, with inputs to trace and compare them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from pivotal.attention_routes import AttentionRoutes
from pivotal.editing.routes import WORD_COLUMNS
from pivotal.model.load import Model
from pivotal.model.unet import RoutedUNet
from pivotal.runtime.exported.modules import Decoder, Encoder, Plain, Routed, Text
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.record import Capacity

ROUTES = tuple(each.name for each in fields(AttentionRoutes))
UNET, PLAIN = "unet", "unet-plain"  # with routes and without: one weight file
Dynamic = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Part:
    """One network to export. `inputs(rows, height, width, seed)`, in pixels, makes random inputs;
    each is a tensor of its own, as an exporter merges two that are one.
    """

    name: str
    module: nn.Module
    inputs: Callable[[int, int, int, int], dict[str, Tensor]]
    outputs: tuple[str, ...]
    dynamic: Dynamic
    weights: str  # the file that holds them

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype


def capacity_of(model: Model) -> Capacity:
    return Capacity(
        model.text.max_length,
        WORD_COLUMNS,
        len(model.unet.self_layers),
        len(model.unet.cross_layers),
    )


def pixel_unit(model: Model) -> int:
    """Pixels per entry of the UNet's coarsest level."""
    config: Any = model.unet.unet.config
    return int(model.autoencoder.scale * 2 ** (len(config.block_out_channels) - 1))


def parts_of(model: Model, profile: ShapeProfile) -> Iterator[Part]:
    """All networks, the UNet first. Raises ValueError for sizes that they can't take."""
    unit = pixel_unit(model)
    profile.require_multiples(model.autoencoder.scale, unit)
    yield from unet_parts(model.unet, capacity_of(model), profile, model.autoencoder.scale, unit)
    yield from _autoencoder_parts(model, profile, unit)
    rows = {0: _dim("rows", profile.rows, 1)}
    two = len(model.text.encoders) == 2
    for place, encoder in enumerate(model.text.encoders):
        name = "text_encoder" if place == 0 else "text_encoder_2"
        pooled = place == 1
        yield Part(
            name,
            Text(encoder, penultimate=two, pooled=pooled),
            _token_ids(model, place),
            ("hidden_states", "pooled")[: 1 + pooled],
            {"ids": rows},
            f"{name}.weights",
        )


def unet_parts(
    unet: RoutedUNet, capacity: Capacity, profile: ShapeProfile, scale: int, unit: int
) -> Iterator[Part]:
    """The UNet with routes and without."""
    rows = _dim("rows", profile.rows, 1)
    sides = _sides(profile, unit // scale, scale)
    dynamic: Dynamic = {"latents": {0: rows, **sides}}
    asked = {"timesteps": 0, "hidden_states": 0}
    config: Any = unet.unet.config
    if config.addition_embed_type == "text_time":
        asked |= {"pooled": 0, "time_ids": 0}
    dynamic |= {name: {place: rows} for name, place in asked.items()}
    layered = ("self_queries", "self_keys", "self_values", "cross_gate")
    routed = {name: {1 if name in layered else 0: rows} for name in ROUTES}

    def inputs(rows: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        return _unet_inputs(unet, capacity, rows, height // scale, width // scale, seed)

    def unrouted(rows: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        every = inputs(rows, height, width, seed)
        return {name: value for name, value in every.items() if name not in ROUTES}

    maps, weights = ("prediction", "word_maps"), "unet.weights"
    yield Part(UNET, Routed(unet), inputs, maps, {**dynamic, **routed}, weights)
    yield Part(PLAIN, Plain(unet), unrouted, maps[:1], dynamic, weights)


def _unet_inputs(
    unet: RoutedUNet, capacity: Capacity, rows: int, height: int, width: int, seed: int
) -> dict[str, Tensor]:
    """Random latents, prompts and routes, on the UNet's device; height and width in latents."""
    parameter, config = next(unet.parameters()), unet.unet.config
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator)
        return made.to(parameter.device, parameter.dtype)

    made = {
        "latents": normal(rows, config.in_channels, height, width),
        "timesteps": 999 * torch.rand(rows, generator=generator),
        "hidden_states": normal(rows, capacity.length, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        width_of_ids = 6 * config.addition_time_embed_dim
        # float32: torch promotes it beside the sizes' embedding, which ONNX would not.
        pooled = normal(rows, config.projection_class_embeddings_input_dim - width_of_ids)
        made["pooled"] = pooled.float()
        made["time_ids"] = torch.tensor([[512.0, 512, 0, 0, 512, 512]]).repeat(rows, 1)
        made["time_ids"] = made["time_ids"].to(parameter.dtype)
    length, own = capacity.length, (capacity.self_layers, rows)
    for name in ("self_queries", "self_keys", "self_values"):
        made[name] = torch.randint(rows, own, generator=generator)
    made["donors"] = torch.randint(rows, (rows,), generator=generator)
    gate = torch.rand(capacity.cross_layers, rows, generator=generator)
    made["cross_gate"] = (gate > 0.5).float()
    made["mix"] = torch.rand(rows, length, length, generator=generator) / length
    made["keep"] = torch.rand(rows, length, generator=generator)
    made["words"] = torch.rand(rows, length, capacity.columns, generator=generator)
    return {name: value.to(parameter.device) for name, value in made.items()}


def _autoencoder_parts(model: Model, profile: ShapeProfile, unit: int) -> Iterator[Part]:
    rows, scale = _dim("rows", profile.rows, 1), model.autoencoder.scale
    device, channels = model.autoencoder.device, model.autoencoder.channels

    def images(rows: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = torch.rand(rows, 3, height, width, generator=generator) * 2 - 1
        return {"images": made.to(device)}

    def latents(rows: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, channels, height // scale, width // scale)
        return {"latents": torch.randn(shape, generator=generator).to(device)}

    pixels = {0: rows, **_sides(profile, unit, 1)}
    latent = {0: rows, **_sides(profile, unit // scale, scale)}
    encoder, decoder = Encoder(model), Decoder(model)
    yield Part(
        "vae_encoder", encoder, images, ("latents",), {"images": pixels}, "vae_encoder.weights"
    )
    yield Part(
        "vae_decoder", decoder, latents, ("images",), {"latents": latent}, "vae_decoder.weights"
    )


def _token_ids(model: Model, place: int) -> Callable[[int, int, int, int], dict[str, Tensor]]:
    tokenizer, device = model.text.tokenizers[place], model.text.device

    def inputs(rows: int, height: int, width: int, seed: int) -> dict[str, Tensor]:
        prompts = [f"{seed + row} things" for row in range(rows)]
        ids = torch.tensor([tokenizer.tokens(prompt).ids for prompt in prompts])
        return {"ids": ids.to(device)}

    return inputs


def _dim(name: str, span: Span, unit: int) -> Any:
    """A dimension in steps of `unit`; a static one has none."""
    if span.static:
        return Dim.STATIC
    each = Dim(name, min=span.low // unit, max=span.high // unit)
    return each if unit == 1 else unit * each


def _sides(profile: ShapeProfile, unit: int, scale: int) -> dict[int, Any]:
    """Dimensions 2 and 3 of a picture, or of latents of `scale` pixels each."""
    sides = {"h": profile.height, "w": profile.width}
    return {
        place: _dim(name, Span(span.low // scale, span.high // scale), unit)
        for place, (name, span) in enumerate(sides.items(), start=2)
    }
