"""What a reduced arithmetic must show before it may run: answers near those of the plain network.

A weight or a factor rounded to too few bits gives pictures, only worse ones. So TF32 and fp8 are
compared with the network as it stands, on this model's own prompts, before the first job.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.driver import Denoiser
from pivotal.errors import PrecisionError
from pivotal.query import Conditioning, Denoise, NoiseGradient, NoiseLoss
from pivotal.schedule import NoiseLevels

logger = logging.getLogger(__name__)

TIMESTEPS = (981.0, 761.0, 521.0, 281.0, 41.0)


@dataclass(frozen=True)
class Gate:
    """The limits, for the worst of the rows. noise_error: root mean square of eps' difference over
    eps' own. gradient_cosine: of the null embedding's gradient. Where they come from:
    `benchmarks/precision.py`.
    """

    noise_error: float = 0.05
    gradient_cosine: float = 0.97

    def check(self, name: str, measured: Measured) -> None:
        """Raise PrecisionError for what does not pass."""
        off, cosine = measured.noise_error, measured.gradient_cosine
        logger.info("%s: eps is off by %.2g, the gradient's cosine is %s", name, off, cosine)
        # Said so that NaN does not pass either.
        if not (off <= self.noise_error and (cosine is None or cosine >= self.gradient_cosine)):
            gradient = "none" if cosine is None else f"{cosine:.4f}"
            raise PrecisionError(
                f"{name} is too coarse for this model: its noise is off by {off:.2g} (at most "
                f"{self.noise_error:g} is accepted), its gradient's cosine is {gradient} (at "
                f"least {self.gradient_cosine:g}); choose another dtype"
            )


@dataclass(frozen=True)
class Measured:
    """Distances of the worst row. gradient_cosine: None where one of the two has no gradients."""

    noise_error: float
    gradient_cosine: float | None


@dataclass(frozen=True)
class Answers:
    """eps [B, C, h, w] and the null embedding's gradient [B, L, D], float32; None where a denoiser
    has none.
    """

    eps: Tensor
    gradient: Tensor | None

    def measured(self, other: Answers) -> Measured:
        """How far the other's are from these."""
        noise, its = self.eps.flatten(1).double(), other.eps.flatten(1).double()
        off = (its - noise).norm(dim=1) / noise.norm(dim=1)
        if self.gradient is None or other.gradient is None:
            return Measured(float(off.max()), None)
        one, two = self.gradient.flatten(1).double(), other.gradient.flatten(1).double()
        cosine = (one * two).sum(dim=1) / one.norm(dim=1) / two.norm(dim=1)
        return Measured(float(off.max()), float(cosine.min()))


def answers_of(
    denoiser: Denoiser,
    levels: NoiseLevels,
    conditioning: Conditioning,
    latents_shape: Sequence[int],
) -> Answers:
    """What a denoiser says to a fixed set of questions.

    conditioning: one row. latents_shape: (C, h, w). Asks at `TIMESTEPS`, for noise and, of a
    denoiser that has it, for the gradient of a residual that is random, so that it weighs all of
    the network's output.
    """
    rows, device = len(TIMESTEPS), conditioning.hidden_states.device
    generator = torch.Generator().manual_seed(0)
    latents, residual = (
        torch.randn(rows, *latents_shape, generator=generator).to(device) for _ in range(2)
    )
    timesteps = torch.tensor(TIMESTEPS, device=device)
    alpha_bars = levels.alpha_bar(timesteps).double()
    many = conditioning.select(torch.zeros(rows, dtype=torch.int64))
    with torch.no_grad():
        noise = denoiser.answer(Denoise(latents, timesteps, alpha_bars, many)).owned()
        if NoiseGradient not in denoiser.answers:
            return Answers(noise.eps, None)
        asked = NoiseGradient(
            latents, timesteps, alpha_bars, many, latents.new_ones(rows), residual - noise.eps
        )
        found = denoiser.answer(asked)
        assert isinstance(found, NoiseLoss)
        return Answers(noise.eps, found.gradient.clone())
