"""Edit-friendly DDPM inversion: independent noise at each level, and the noise maps that join them.

Huberman-Spiegelglas et al. 2023, "An Edit Friendly DDPM Noise Space" (arXiv:2304.06140), Algorithm
1. Maps are stored times their standard deviation: what a step adds. That serves the last step too,
whose deviation may be 0, and so the image comes back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, Progress
from pivotal.sampling.guidance import guided_noise
from pivotal.sampling.posterior import posterior_mean, posterior_std
from pivotal.schedule import Schedule

from .base import Inverted
from .checks import LARGEST_SEED, require_within


@dataclass(frozen=True)
class EditFriendlyOptions:
    """skip: the share of the noisiest steps that an edit leaves out, so that it stays near the
    image; the paper's is 0.36. Source and targets start from the image's latents after them.

    guidance_scale: of the maps, and so of the replay that is exact. eta: of the sampler, 1 is DDPM.
    seed: of the noise; an image's is the same alone and in a batch.
    """

    guidance_scale: float = 3.5
    skip: float = 0.36
    eta: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_within("seed", self.seed, 0, LARGEST_SEED)
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip={self.skip}; from 0 to below 1 is possible")
        require_within("eta", self.eta, 0, 1)

    def skipped(self, steps: int) -> int:
        """Steps left out; 0.3 of 10 steps is 3 in spite of rounding."""
        return min(int(self.skip * steps + 1e-9), steps - 1)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: EditFriendlyOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to `start`, the latents that sampling starts from, and
    `noise_maps` [B, steps, C, h, w], 0 where skipped; a (guided two) UNet row each step and image.
    """
    generator = torch.Generator().manual_seed(options.seed)
    noisy = [latents]
    for low, high in schedule.ascending():
        fresh = torch.randn(latents.shape[1:], generator=generator, dtype=torch.float64)
        if high.alpha_bar == low.alpha_bar:  # a step that stands still
            noisy.append(noisy[-1])
            continue
        signal, spread = high.alpha_bar**0.5, (1 - high.alpha_bar) ** 0.5
        noisy.append(signal * latents + spread * fresh.to(latents))
    skipped = options.skipped(schedule.steps)
    maps = [torch.zeros_like(latents) for _ in range(skipped)]
    for step, high, low in schedule.descending():
        if step < skipped:
            continue
        yield from Progress("invert", step - skipped, schedule.steps - skipped)
        here, below = noisy[schedule.steps - step], noisy[schedule.steps - step - 1]
        noise = yield from guided_noise(here, high, conditioning, null, options.guidance_scale)
        mean = posterior_mean(noise, low, posterior_std(high, low, options.eta))
        maps.append(below - mean)
    return Inverted(
        noise=noisy[-1],
        stored={
            "start": noisy[schedule.steps - skipped],
            "noise_maps": torch.stack(maps, dim=1),
        },
    )


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: EditFriendlyOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back, adding the source's noise maps to every row. Returns latents
    [R, C, h, w].
    """
    skipped = options.skipped(schedule.steps)
    latents, maps = inverted.stored["start"], inverted.stored["noise_maps"]
    for step, high, low in schedule.descending():
        if step < skipped:
            continue
        yield from Progress("sample", step, schedule.steps)
        noise = yield from guided_noise(
            latents, high, conditioning, null, guidance_scale, control.routes(step)
        )
        mean = posterior_mean(noise, low, posterior_std(high, low, options.eta))
        latents = control.after_step(step, mean + maps[:, step], noise.word_maps)
    return latents
