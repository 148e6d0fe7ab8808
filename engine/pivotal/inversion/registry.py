"""All inversion methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from pivotal.query import Denoise, NoiseGradient

from . import ddim, direct, fixed_point, negative_prompt, newton, null_text, renoise
from .method import Method

__all__ = ["METHODS", "Method", "method_named"]

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="ddim",
            title="DDIM inversion",
            paper="arXiv:2010.02502",
            rows="steps",
            stores="the noise",
            guidance=(1.0, 2.0),
            invert=ddim.invert,
            replay=ddim.replay,
            options=ddim.DDIMOptions,
            needs=frozenset({Denoise}),
        ),
        Method(
            name="null-text",
            title="Null-text inversion",
            paper="arXiv:2211.09794",
            rows="at most steps * (1 + 1 + inner_steps) + steps",
            stores="the noise and a null embedding for each step",
            guidance=(1.0, 10.0),
            invert=null_text.invert,
            replay=null_text.replay,
            options=null_text.NullTextOptions,
            needs=frozenset({Denoise, NoiseGradient}),
            stored={"null_embeddings": ("steps", "length", "width")},
            fits_guidance=True,
        ),
        Method(
            name="negative-prompt",
            title="Negative-prompt inversion, with proximal guidance on request",
            paper="arXiv:2305.16807",
            rows="steps",
            stores="the noise and the image's latents",
            guidance=(1.0, 10.0),
            invert=negative_prompt.invert,
            replay=negative_prompt.replay,
            options=negative_prompt.NegativePromptOptions,
            needs=frozenset({Denoise}),
            stored={"clean": ("latents",)},
        ),
        Method(
            name="direct",
            title="Direct inversion",
            paper="arXiv:2310.01506",
            rows="steps",
            stores="the latents at every noise level",
            guidance=(1.0, 10.0),
            invert=direct.invert,
            replay=direct.replay,
            options=direct.DirectOptions,
            needs=frozenset({Denoise}),
            stored={"pivots": ("levels", "latents")},
        ),
        Method(
            name="fixed-point",
            title="Fixed-point inversion, plain or Anderson-accelerated",
            paper="arXiv:2309.04907",
            rows="at most steps * iterations",
            stores="the noise",
            guidance=(1.0, 3.0),
            invert=fixed_point.invert,
            replay=fixed_point.replay,
            options=fixed_point.FixedPointOptions,
            needs=frozenset({Denoise}),
        ),
        Method(
            name="renoise",
            title="ReNoise",
            paper="arXiv:2403.14602",
            rows="at most steps * (renoise_steps + 2)",
            stores="the noise",
            guidance=(1.0, 3.0),
            invert=renoise.invert,
            replay=renoise.replay,
            options=renoise.ReNoiseOptions,
            needs=frozenset({Denoise}),
        ),
        Method(
            name="newton-raphson",
            title="Guided Newton-Raphson inversion",
            paper="arXiv:2312.12540",
            rows="steps * (2 iterations - 1)",
            stores="the noise",
            guidance=(1.0, 3.0),
            invert=newton.invert,
            replay=newton.replay,
            options=newton.NewtonOptions,
            needs=frozenset({Denoise, NoiseGradient}),
        ),
    )
}


def method_named(name: str) -> Method:
    """Raises ValueError naming the accepted methods."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; accepted are {', '.join(METHODS)}")
    return METHODS[name]
