"""How noise is to become a picture, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .control import Control
from .driver import require
from .images import Fitted
from .inversion.checks import LARGEST_SEED, require_within
from .query import Algorithm, Conditioning, Denoise, LossGradient
from .running import Runner
from .sampling.draws import Draw
from .sampling.loss_guidance import LossGuidance
from .sampling.losses import PictureLoss
from .sampling.samplers import Sampler, sampler_named, schedule_of_step_size
from .schedule import NoiseLevels, Schedule

Prompt = str | Conditioning
"""A text, or one row of embeddings: what `Engine.encode` and prompt arithmetic give."""


@dataclass(frozen=True)
class Sampling:
    """A sampler with its options, and the loss that guides it, if any."""

    sampler: Sampler
    options: Mapping[str, float]
    loss: LossGuidance | None

    def algorithm(
        self,
        schedule: Schedule,
        noise: Tensor,
        conditioning: Conditioning,
        null: Conditioning,
        guidance_scale: float,
        control: Control,
        draw: Draw,
    ) -> Algorithm[Tensor]:
        """From noise [R, C, h, w] at the schedule's noisiest level to clean latents."""
        fresh = {"draw": draw} if self.sampler.draws else {}
        return self.sampler.sample(
            schedule,
            noise,
            conditioning,
            lambda step: null,
            guidance_scale,
            control,
            loss=self.loss,
            **self.options,
            **fresh,
        )

    def record(self) -> dict[str, Any]:
        """For results. A loss is named if it has a name."""
        loss = self.loss
        return {
            "sampler": self.sampler.name,
            "sampler_options": dict(self.options),
            "loss": None
            if loss is None
            else {
                "name": getattr(loss.loss, "__name__", type(loss.loss).__name__),
                "scale": loss.scale,
                "periodicity": loss.periodicity,
                "through_unet": loss.through_unet,
            },
        }


def checked_sampling(
    runner: Runner,
    sampler: str,
    eta: float | None,
    order: int | None,
    loss: PictureLoss | LossGuidance | None,
) -> Sampling:
    """Raises ValueError for a wrong argument, BackendError where no loss can be differentiated."""
    chosen = sampler_named(sampler)
    given: dict[str, float] = {} if eta is None else {"eta": eta}
    if order is not None:
        given["order"] = order
    guidance = loss if loss is None or isinstance(loss, LossGuidance) else LossGuidance(loss)
    if guidance is None:
        require(runner.denoiser, {Denoise}, "sampling")
    else:
        require(runner.denoiser, {Denoise, LossGradient}, "loss-guided sampling")
    return Sampling(chosen, chosen.options_from(given), guidance)


def checked_schedule(levels: NoiseLevels, steps: int | None, step_size: int | None) -> Schedule:
    """The grid of so many steps, 50 if nothing is said, or of steps of that size. Raises
    ValueError.
    """
    if step_size is None:
        return levels.schedule(50 if steps is None else steps)
    if steps is not None:
        raise ValueError(
            f"num_inference_steps={steps} beside step_size={step_size}; give one of them"
        )
    return schedule_of_step_size(levels, step_size)


def checked_seeds(seed: int, count: int) -> list[int]:
    """`seed`, `seed + 1`, .. Raises ValueError for one that no generator takes."""
    seeds = [seed + index for index in range(count)]
    for each in seeds:
        require_within("seed", each, 0, LARGEST_SEED)
    return seeds


def checked_prompts(prompt: Prompt | Sequence[Prompt], name: str) -> list[Prompt]:
    """One or several prompts as a list. Raises ValueError for none, and for what is no prompt."""
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    prompts: list[Any] = list(prompt) if several else [prompt]  # type: ignore[arg-type]
    if not prompts:
        raise ValueError(f"{name}={prompt!r}; give at least one prompt")
    for each in prompts:
        if not isinstance(each, str | Conditioning):
            raise ValueError(
                f"{name}={each!r}; a text is expected, or the Conditioning of one (Engine.encode)"
            )
    return prompts


def texts_of(prompts: Sequence[Prompt]) -> list[str | None]:
    """Of prompts that are texts; None for embeddings, which have none."""
    return [each if isinstance(each, str) else None for each in prompts]


def encoded(
    runner: Runner,
    prompts: Sequence[Prompt],
    shown: tuple[int, int] | Fitted,
    *,
    negative: bool = False,
) -> Conditioning:
    """Conditioning of B prompts for a picture, or for any of a size.

    negative: texts among them are what guidance leads away from.
    Raises ValueError for embeddings of another shape than the model's own, or of several rows.
    """
    texts = [each for each in prompts if isinstance(each, str)]
    if len(texts) == len(prompts):
        return runner.encode(texts, shown, negative=negative)
    own = runner.encode([""], shown)
    rows = []
    for each in prompts:
        row = runner.encode([each], shown, negative=negative) if isinstance(each, str) else each
        if row.rows != 1 or row.kind() != own.kind():
            raise ValueError(
                f"a prompt's embeddings are {list(row.hidden_states.shape)} "
                f"{str(row.hidden_states.dtype).removeprefix('torch.')}; this model's are "
                f"{list(own.hidden_states.shape)} float32 (Engine.encode)"
            )
        rows.append(row.to(runner.model.device))
    return Conditioning.cat(rows)
