"""All inversion methods by name."""

from __future__ import annotations

from collections.abc import Mapping

from pivotal.query import Denoise, NoiseGradient

from . import (
    ddim,
    direct,
    edict,
    edit_friendly,
    fixed_point,
    negative_prompt,
    newton,
    null_text,
    renoise,
    two_step,
)
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
        Method(
            name="edict",
            title="EDICT",
            paper="arXiv:2211.12446",
            rows="2 * steps, guided 4 * steps",
            stores="a pair of noises, float64",
            guidance=(1.0, 5.0),
            invert=edict.invert,
            replay=edict.replay,
            options=edict.EDICTOptions,
            needs=frozenset({Denoise}),
            stored={"partner": ("latents",)},
            fits_guidance=True,
        ),
        Method(
            name="bdia",
            title="BDIA",
            paper="arXiv:2307.10829",
            rows="steps, guided 2 * steps",
            stores="the noisiest two latents, float64",
            guidance=(1.0, 3.0),
            invert=two_step.invert,
            replay=two_step.replay,
            options=two_step.BDIAOptions,
            needs=frozenset({Denoise}),
            stored={"second": ("latents",)},
            fits_guidance=True,
        ),
        Method(
            name="belm",
            title="BELM, the optimal one (O-BELM)",
            paper="arXiv:2410.07273",
            rows="steps, guided 2 * steps",
            stores="the noisiest two latents, float64",
            guidance=(1.0, 3.0),
            invert=two_step.invert,
            replay=two_step.replay,
            options=two_step.BELMOptions,
            needs=frozenset({Denoise}),
            stored={"second": ("latents",)},
            fits_guidance=True,
        ),
        Method(
            name="edit-friendly",
            title="Edit-friendly DDPM inversion",
            paper="arXiv:2304.06140",
            rows="(1 - skip) * steps, guided twice that",
            stores="a start and a noise map for each step",
            guidance=(1.0, 15.0),
            invert=edit_friendly.invert,
            replay=edit_friendly.replay,
            options=edit_friendly.EditFriendlyOptions,
            needs=frozenset({Denoise}),
            stored={"start": ("latents",), "noise_maps": ("steps", "latents")},
            fits_guidance=True,
        ),
    )
}


def method_named(name: str) -> Method:
    """Raises ValueError naming the accepted methods."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; accepted are {', '.join(METHODS)}")
    return METHODS[name]
