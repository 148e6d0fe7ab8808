"""Style transfer from inverted noise: start where one picture came from, go where a prompt says."""

from __future__ import annotations

from torch import Tensor

from pivotal.control import Control
from pivotal.query import Algorithm, Conditioning
from pivotal.schedule import Schedule

from .ddim import sample
from .prompt_arithmetic import Path, interpolate


def transfer(
    schedule: Schedule,
    noise: Tensor,
    content: Conditioning,
    style: Conditioning,
    null: Conditioning,
    guidance_scale: float,
    control: Control,
    *,
    amount: float = 1.0,
    path: Path = "linear",
) -> Algorithm[Tensor]:
    """Sample inverted noise [R, C, h, w] under the content's prompt, the style's, or a blend.

    amount: 0 is the content's prompt, which reconstructs; 1 the style's. The layout that the noise
    holds stays. Returns latents [R, C, h, w].
    """
    blend = interpolate(content, style, amount, path=path)
    return (yield from sample(schedule, noise, blend, lambda step: null, guidance_scale, control))
