"""What null-text inversion is compared with in its own paper (arXiv:2211.09794, section 4.1).

Worse by design: one embedding for all timesteps, random pivots in DDIM's place, and the prompt's
embedding fitted in the null's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning, NoiseGradient, Progress, every_row
from pivotal.sampling.adam import AdamState, adam_step
from pivotal.sampling.guidance import both_noises, guided_ddim_step
from pivotal.sampling.steps import ddim_coefficients
from pivotal.schedule import Schedule

from . import ddim, null_text
from .base import Inverted
from .checks import LARGEST_SEED, require_above, require_one_of, require_within


@dataclass(frozen=True)
class AblationOptions:
    """guidance_scale: the guidance that is fitted for. fitted: "null" or "prompt", whose embedding.
    embeddings: one for each step, or one for all. pivots: DDIM's at guidance 1, or the image under
    fresh noise, drawn anew at each iteration from `seed`.

    iterations: Adam's, each step; for one embedding, over all steps together. learning_rate:
    Adam's, constant.
    """

    guidance_scale: float = 7.5
    fitted: Literal["null", "prompt"] = "null"
    embeddings: Literal["each", "one"] = "one"
    pivots: Literal["ddim", "random"] = "ddim"
    iterations: int = 10
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_within("seed", self.seed, 0, LARGEST_SEED)
        require_one_of("fitted", self.fitted, ("null", "prompt"))
        require_one_of("embeddings", self.embeddings, ("each", "one"))
        require_one_of("pivots", self.pivots, ("ddim", "random"))
        require_within("iterations", self.iterations, 0)
        require_above("learning_rate", self.learning_rate, 0)


def invert(
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    null: Conditioning,
    options: AblationOptions,
) -> Algorithm[Inverted]:
    """Latents [B, C, h, w] float32 to noise and `embeddings` [B, steps, L, D], equal ones where one
    serves all steps.

    Costs `steps (3 iterations)` UNet rows an image and `steps * iterations` backward, DDIM's pivots
    and, for embeddings of each step, its guided steps besides.
    """
    fit = _Fit(schedule, latents, conditioning, null, options)
    if options.pivots == "ddim":
        fit.pivots = yield from ddim.trajectory(
            schedule, latents, conditioning, null, ddim.DDIMOptions()
        )
    noise = fit.pivots[-1]
    if options.embeddings == "one":
        for iteration in range(options.iterations):
            yield from Progress("fit", iteration, options.iterations)
            yield from fit.sweep()
        found = [fit.embedding] * schedule.steps
    else:
        found, here = [], noise
        for step, high, low in schedule.descending():
            yield from Progress("fit", step, schedule.steps)
            fit.state = AdamState.fresh(fit.embedding)
            for _ in range(options.iterations):
                gradient = yield from fit.gradient(step, here)
                fit.move(gradient)
            here, _ = yield from guided_ddim_step(
                here, high, low, *fit.conditionings(), options.guidance_scale
            )
            found.append(fit.embedding)
    return Inverted(noise=noise, stored={"embeddings": torch.stack(found, dim=1)})


class _Fit:
    """The embedding on its way, Adam's state and the pivots: what the two loops share."""

    def __init__(
        self,
        schedule: Schedule,
        latents: Tensor,
        conditioning: Conditioning,
        null: Conditioning,
        options: AblationOptions,
    ) -> None:
        self.schedule, self.options, self.clean = schedule, options, latents
        self.prompt, self.null = conditioning, null
        fitted = null if options.fitted == "null" else conditioning
        self.embedding = fitted.hidden_states
        self.state = AdamState.fresh(self.embedding)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.pivots = self._noised()

    def conditionings(self) -> tuple[Conditioning, Conditioning]:
        """The prompt's and the null's, one of them with the embedding as it is."""
        if self.options.fitted == "null":
            return self.prompt, replace(self.null, hidden_states=self.embedding)
        return replace(self.prompt, hidden_states=self.embedding), self.null

    def sweep(self) -> Algorithm[None]:
        """One update of one embedding by the mean gradient over all steps."""
        if self.options.pivots == "random":
            self.pivots = self._noised()
        gradients = []
        for step in range(self.schedule.steps):
            gradients.append((yield from self.gradient(step, self.pivots[-1 - step])))
        self.move(torch.stack(gradients).mean(dim=0))

    def gradient(self, step: int, here: Tensor) -> Algorithm[Tensor]:
        """Of `mean((pivot - step)^2)` with respect to the fitted embedding [B, L, D]; `here`: the
        latents that the step starts from, unless pivots are random.
        """
        levels, w = self.schedule.levels, self.options.guidance_scale
        high, low = levels[-1 - step], levels[-2 - step]
        if high.alpha_bar == 0:
            return torch.zeros_like(self.embedding)
        pivots = self.pivots
        if self.options.pivots == "random" and self.options.embeddings == "each":
            pivots = self._noised()
            here = pivots[-1 - step]
        a, b = ddim_coefficients(high, low)
        cond, null = self.conditionings()
        uncond_noise, cond_noise = yield from both_noises(here, high, cond, null)
        of_null = self.options.fitted == "null"
        share, rest = (1 - w, w * cond_noise.eps) if of_null else (w, (1 - w) * uncond_noise.eps)
        timesteps, alpha_bars = every_row(here, high)
        answer = yield from NoiseGradient(
            here,
            timesteps,
            alpha_bars,
            null if of_null else cond,
            scale=here.new_full((here.shape[0],), -b * share),
            offset=pivots[-2 - step] - a * here - b * rest,
        )
        return answer.gradient

    def move(self, gradient: Tensor) -> None:
        self.embedding, self.state = adam_step(
            self.embedding, gradient, self.state, self.options.learning_rate
        )

    def _noised(self) -> list[Tensor]:
        """The image under one fresh noise at every level, the same noise for every image."""
        noise = torch.randn(self.clean.shape[1:], generator=self.generator, dtype=torch.float64)
        fresh = noise.to(self.clean)
        return [self.clean] + [
            level.alpha_bar**0.5 * self.clean + (1 - level.alpha_bar) ** 0.5 * fresh
            for level in self.schedule.levels[1:]
        ]


def replay(
    schedule: Schedule,
    inverted: Inverted,
    conditioning: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    options: AblationOptions,
) -> Algorithm[Tensor]:
    """Sample R rows back. A fitted prompt stands in for its source's own; targets keep theirs."""
    embeddings = inverted.stored["embeddings"]
    if options.fitted == "null":
        as_null = replace(inverted, stored={"null_embeddings": embeddings})
        return (
            yield from null_text.replay(
                schedule, as_null, conditioning, null, guidance_scale, control
            )
        )
    latents = inverted.noise
    sources = control.sources(latents.shape[0]).to(latents.device)
    own = (sources == torch.arange(len(sources), device=latents.device))[:, None, None]
    for step, high, low in schedule.descending():
        yield from Progress("sample", step, schedule.steps)
        prompts = torch.where(own, embeddings[:, step], conditioning.hidden_states)
        latents, noise = yield from guided_ddim_step(
            latents,
            high,
            low,
            replace(conditioning, hidden_states=prompts),
            null,
            guidance_scale,
            control.routes(step),
        )
        latents = control.after_step(step, latents, noise.word_maps)
    return latents
