"""Mutual self-attention: targets look at the source's picture with queries of their own.

Cao et al. 2023, "MasaCtrl" (arXiv:2304.08465), section 3.2: from some step and layer on, the
self-attention of a target's rows, conditional and unconditional, takes keys and values from the
source's. Poses and shapes may change, textures and colours stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pivotal.attention_routes import AttentionRoutes

# The paper's layer 10 of Stable Diffusion's 16, for UNets with another count.
_PAPERS_LAYER, _PAPERS_LAYERS = 10, 16


@dataclass(frozen=True)
class MutualSelfAttention:
    """start_step: the first step that is routed, 0 the noisiest. start_layer: the first
    self-attention layer, in running order; None for the paper's 10 of 16, in proportion.
    """

    start_step: int = 4
    start_layer: int | None = None

    def __post_init__(self) -> None:
        for name in ("start_step", "start_layer"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value}; 0 or more is possible")

    def layers(self, count: int) -> range:
        """The routed ones of so many self-attention layers."""
        start = self.start_layer
        if start is None:
            start = count * _PAPERS_LAYER // _PAPERS_LAYERS
        return range(min(start, count), count)

    def steps(self, steps: int, first_step: int = 0) -> range:
        """The routed ones of so many, of which the replay runs those from `first_step` on."""
        return range(min(max(self.start_step, first_step), steps), steps)


def with_mutual(
    routes: AttentionRoutes, targets: Mapping[int, MutualSelfAttention]
) -> AttentionRoutes:
    """Routes of R conditional rows, source first, as routes of 2R rows, unconditional first, in
    which the given target rows borrow the source's keys and values.

    Where a layer is shared so, an injection of the source's queries gives way.
    """
    rows, count = routes.rows, routes.self_queries.shape[0]
    both = AttentionRoutes.cat([routes.identity_like(rows), routes])
    queries, keys, values = (
        tensor.clone() for tensor in (both.self_queries, both.self_keys, both.self_values)
    )
    for row, mutual in targets.items():
        shared = list(mutual.layers(count))
        for half in (0, rows):  # each half of the batch has a source of its own
            queries[shared, half + row] = half + row
            keys[shared, half + row] = half
            values[shared, half + row] = half
    return replace(both, self_queries=queries, self_keys=keys, self_values=values)
