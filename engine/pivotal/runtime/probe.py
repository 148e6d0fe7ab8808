"""Proof that every attention layer follows its route.

One layer is routed at a time, and the output must change.

A fast attention that bypasses a hook would ignore every edit silently; this finds it when a UNet is
adapted, compiled or exported, before any picture is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import Denoiser, drive
from pivotal.errors import EditWithoutEffectError
from pivotal.model.unet import AttentionLayer
from pivotal.query import Algorithm, Conditioning, Denoise, Noise


def probe_routes(
    denoiser: Denoiser,
    layers: tuple[AttentionLayer, ...],
    conditioning: Conditioning,
    latents: Tensor,
) -> dict[str, float]:
    """How much routing each layer alone changes eps: layer name to the largest difference.

    conditioning: two rows, of different prompts. latents: [2, C, h, w], different. Row 0 is the
    donor; row 1 is asked twice unrouted (their difference is the rounding floor), then once for
    each layer. Raises EditWithoutEffectError naming the layers that ignore their route.
    """
    rows = 3 + len(layers)
    select = torch.tensor([0] + [1] * (rows - 1))
    eps = drive(
        _ask(latents[select], conditioning.select(select), _one_layer_each(layers, conditioning)),
        denoiser,
        name="probe of attention routes",
    ).eps
    plain = eps[1]
    floor = (eps[2] - plain).abs().max().item()
    changes = {
        layer.name: (eps[3 + place] - plain).abs().max().item()
        for place, layer in enumerate(layers)
    }
    deaf = [name for name, change in changes.items() if not change > 2 * floor]
    if deaf:
        raise EditWithoutEffectError(
            f"{len(deaf)} of {len(layers)} attention layers ignore their route: {', '.join(deaf)}"
        )
    return changes


def _ask(latents: Tensor, conditioning: Conditioning, routes: AttentionRoutes) -> Algorithm[Noise]:
    rows = latents.shape[0]
    middle = torch.full((rows,), 500.0, device=latents.device)
    half = torch.full((rows,), 0.5, dtype=torch.float64, device=latents.device)
    return (yield from Denoise(latents, middle, half, conditioning, routes))


def _one_layer_each(
    layers: tuple[AttentionLayer, ...], conditioning: Conditioning
) -> AttentionRoutes:
    rows, length = 3 + len(layers), conditioning.hidden_states.shape[1]
    kinds = [layer.kind for layer in layers]
    routes = AttentionRoutes.identity(rows, length, 1, kinds.count("self"), kinds.count("cross"))
    for row, layer in enumerate(layers, start=3):
        if layer.kind == "self":
            routes.self_queries[layer.index, row] = 0
            routes.self_keys[layer.index, row] = 0
        else:
            routes.cross_gate[layer.index, row] = 1
            routes.donors[row] = 0
            routes.mix[row] = torch.eye(length)
            routes.keep[row] = 0
    return routes
