"""Negative prompts: a text in the empty prompt's place, which guidance leads away from.

With null-text the fit starts from its embedding in place of the empty prompt's, so that what is
fitted reproduces the image, and edits are led away from the negative prompt as far as the fit left
it. A method that is fitted for its guidance is fitted for its negative prompt too.
"""

from __future__ import annotations

from dataclasses import replace

from .inversion.method import Method
from .inversion.registry import method_named
from .inversion_file import Inversion
from .query import Conditioning


def checked_negative(negative_prompt: str, method: Method, guidance_scale: float) -> str:
    """The text. Raises ValueError for one that would do nothing."""
    if not isinstance(negative_prompt, str):
        raise ValueError(
            f"negative_prompt is of type {type(negative_prompt).__name__}; a text is expected"
        )
    if not negative_prompt:
        return negative_prompt
    if not method.uses_null:
        raise ValueError(
            f"negative_prompt={negative_prompt!r} means nothing to {method.name}, which is guided "
            "away from the source's own prompt; choose another method or leave it out"
        )
    if guidance_scale == 1:
        raise _does_nothing(repr(negative_prompt))
    return negative_prompt


def require_negative(negative_prompt: object, guidance_scale: float) -> None:
    """Raises ValueError for neither a text nor an embedding, and for one that would do nothing."""
    embedded = isinstance(negative_prompt, Conditioning)
    if not embedded and not isinstance(negative_prompt, str):
        raise ValueError(
            f"negative_prompt={negative_prompt!r}; one text or embedding for all is expected"
        )
    if guidance_scale == 1 and (embedded or negative_prompt):
        raise _does_nothing("an embedding" if embedded else repr(negative_prompt))


def _does_nothing(said: str) -> ValueError:
    return ValueError(
        f"negative_prompt={said} does nothing at guidance_scale=1, which is no guidance; raise it "
        "or leave the negative prompt out"
    )


def under_negative(
    inversion: Inversion, negative_prompt: str | None, guidance_scale: float
) -> Inversion:
    """The inversion as it is replayed under a negative prompt; under its own if None.

    Raises ValueError for another than its own where it was fitted to that.
    """
    if negative_prompt is None:
        return inversion
    method = method_named(inversion.method)
    given = checked_negative(negative_prompt, method, guidance_scale)
    if method.fits_guidance and given != inversion.negative_prompt:
        raise ValueError(
            f"negative_prompt={given!r}: the {method.name} inversion was fitted for "
            f"{inversion.negative_prompt!r}; leave it out, or invert again with it"
        )
    return replace(inversion, negative_prompt=given)
