"""Proof that every attention layer follows its route.

One layer is routed at a time, and the output must change.

A fast attention that bypasses a hook would ignore every edit silently; this finds it when a UNet is
adapted, compiled or exported, before any picture is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import Denoiser, drive
from pivotal.errors import EditWithoutEffectError
from pivotal.model.unet import AttentionLayer
from pivotal.query import Algorithm, Conditioning, Denoise


def probe_routes(
    denoiser: Denoiser,
    layers: tuple[AttentionLayer, ...],
    conditioning: Conditioning,
    latents: Tensor,
    *,
    max_rows: int | None = None,
) -> dict[str, float]:
    """How much routing each layer alone changes eps: layer name to the largest difference.

    conditioning: two rows, of different prompts. latents: [2, C, h, w], different. Row 0 is the
    donor; row 1 is asked unrouted at both ends (their difference is the rounding floor), and in
    between once for each layer. max_rows: the most rows in one batch, the donor's included, from 2;
    None for no limit. Raises EditWithoutEffectError naming the layers that ignore their route.
    """
    if max_rows is not None and max_rows < 2:
        raise ValueError(f"max_rows={max_rows}; a probe needs 2, a donor and a row that borrows")
    routed: list[AttentionLayer | None] = [None, *layers, None]
    size = len(routed) if max_rows is None else max_rows - 1
    routed += [None] * (-len(routed) % size)  # every batch of one size, so of one graph
    eps = drive(
        _ask(
            layers,
            [routed[i : i + size] for i in range(0, len(routed), size)],
            conditioning,
            latents,
        ),
        denoiser,
        name="probe of attention routes",
    )
    plain = eps[0]
    floor = (eps[-1] - plain).abs().max().item()
    changes = {
        layer.name: (own - plain).abs().max().item()
        for layer, own in zip(layers, eps[1 : 1 + len(layers)], strict=True)
    }
    deaf = [name for name, change in changes.items() if not change > 2 * floor]
    if deaf:
        raise EditWithoutEffectError(
            f"{len(deaf)} of {len(layers)} attention layers ignore their route: {', '.join(deaf)}"
        )
    return changes


def _ask(
    layers: tuple[AttentionLayer, ...],
    batches: Sequence[Sequence[AttentionLayer | None]],
    conditioning: Conditioning,
    latents: Tensor,
) -> Algorithm[Tensor]:
    """eps [N, C, h, w] of row 1, routed in one layer or in none, for all that the batches name."""
    found = []
    for routed in batches:
        rows = 1 + len(routed)
        select = torch.tensor([0] + [1] * len(routed))
        middle = torch.full((rows,), 500.0, device=latents.device)
        half = torch.full((rows,), 0.5, dtype=torch.float64, device=latents.device)
        routes = _one_layer_each(layers, routed, conditioning.hidden_states.shape[1])
        noise = yield from Denoise(
            latents[select], middle, half, conditioning.select(select), routes
        )
        found.append(noise.eps[1:])
    return torch.cat(found)


def _one_layer_each(
    layers: tuple[AttentionLayer, ...], routed: Sequence[AttentionLayer | None], length: int
) -> AttentionRoutes:
    """Routes of the donor's row and of one row for each entry."""
    kinds = [layer.kind for layer in layers]
    routes = AttentionRoutes.identity(
        1 + len(routed), length, 1, kinds.count("self"), kinds.count("cross")
    )
    for row, layer in enumerate(routed, start=1):
        if layer is None:
            continue
        if layer.kind == "self":
            routes.self_queries[layer.index, row] = 0
            routes.self_keys[layer.index, row] = 0
        else:
            routes.cross_gate[layer.index, row] = 1
            routes.donors[row] = 0
            routes.mix[row] = torch.eye(length)
            routes.keep[row] = 0
    return routes
