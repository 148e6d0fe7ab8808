"""What every inversion method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inverted:
    """What `invert` returns for B images: exactly what its `replay` needs.

    All tensors batch first.

    noise: [B, C, h, w] float32, latents at the noisiest level. stored: more that the method's
    replay needs (null-text's embeddings, ..), [B, ...] each. diagnostics: what it looked like on
    the way (losses); never needed, never written to a file.
    """

    noise: Tensor
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, images: Tensor) -> Inverted:
        """Some images' inversions, by index [R] int64; an index may repeat."""
        return Inverted(
            self.noise[images],
            {name: tensor[images] for name, tensor in self.stored.items()},
            {name: tensor[images] for name, tensor in self.diagnostics.items()},
        )

    def to(self, device: torch.device | str) -> Inverted:
        return Inverted(
            self.noise.to(device),
            {name: tensor.to(device) for name, tensor in self.stored.items()},
            {name: tensor.to(device) for name, tensor in self.diagnostics.items()},
        )

    def expand(self, rows: int) -> Inverted:
        """One image's inversion for several rows, without copying what is stored."""
        return Inverted(
            self.noise.expand(rows, -1, -1, -1).clone(),
            {name: t.expand(rows, *t.shape[1:]) for name, t in self.stored.items()},
            {name: t.expand(rows, *t.shape[1:]) for name, t in self.diagnostics.items()},
        )
