"""Whether a picture shows what was asked, as the frozen oracle reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pivotal.bench.shapes.oracle import read
from pivotal.bench.shapes.scenes import draw, mask_of
from shapes.cases import EditCase, PromptCase
from shapes.images import psnr

PLACE = 4.0  # pixels an object's centre may move
DILATION = 3  # pixels around the objects' masks that an edit may change too
OUTSIDE = 25.0  # decibels asked of the rest, against the source picture


@dataclass(frozen=True)
class EditVerdict:
    """Each condition of a successful edit, on one picture."""

    one_object: bool
    new_attribute: bool
    other_attribute: bool
    background: bool
    place: bool
    outside: bool
    outside_db: float
    seen: str

    @property
    def success_but_for_place(self) -> bool:
        """The new attribute alone has changed, and nothing outside the object."""
        return (
            self.one_object
            and self.new_attribute
            and self.other_attribute
            and self.background
            and self.outside
        )

    @property
    def success(self) -> bool:
        """Besides, the object has stayed where it was, within `PLACE` pixels."""
        return self.success_but_for_place and self.place

    def record(self) -> dict[str, object]:
        whole = {"success_but_for_place": self.success_but_for_place, "success": self.success}
        return {**asdict(self), **whole}


def judge_edit(case: EditCase, picture: NDArray[np.uint8]) -> EditVerdict:
    """Judge an edited picture uint8 [64, 64, 3] by the case alone.

    Outside means outside both drawn objects' masks, the source's and the wanted one's, dilated by
    `DILATION` pixels; decibels there are against the drawn source picture.
    """
    reading = read(picture)
    thing, wanted = case.scene.objects[0], case.wanted.objects[0]
    mask = ndimage.binary_dilation(mask_of(thing) | mask_of(wanted), iterations=DILATION)
    source = draw(case.scene)[0]
    outside_db = float(psnr(source[None], picture[None], ~mask[None])[0])
    found = max(reading.objects, key=lambda item: item.mask.sum(), default=None)
    shape = found is not None and found.shape == wanted.shape
    colour = found is not None and found.colour == wanted.colour
    return EditVerdict(
        one_object=len(reading.objects) == 1,
        new_attribute=colour if case.kind == "colour" else shape,
        other_attribute=shape if case.kind == "colour" else colour,
        background=reading.background == case.scene.background.colour,
        place=found is not None and bool(np.hypot(found.x - thing.x, found.y - thing.y) <= PLACE),
        outside=outside_db >= OUTSIDE,
        outside_db=outside_db,
        seen=_said(reading.background, [(item.colour, item.shape) for item in reading.objects]),
    )


@dataclass(frozen=True)
class PromptVerdict:
    """What of a prompt a generated picture shows; `success` is exactly one object, as asked."""

    shape: bool
    colour: bool
    background: bool
    success: bool
    seen: str


def judge_prompt(case: PromptCase, picture: NDArray[np.uint8]) -> PromptVerdict:
    """Judge a generated picture uint8 [64, 64, 3]."""
    reading = read(picture)
    found = max(reading.objects, key=lambda item: item.mask.sum(), default=None)
    shape = found is not None and found.shape == case.shape
    colour = found is not None and found.colour == case.colour
    return PromptVerdict(
        shape=shape,
        colour=colour,
        background=reading.background == case.background,
        success=shape and colour and len(reading.objects) == 1,
        seen=_said(reading.background, [(item.colour, item.shape) for item in reading.objects]),
    )


def _said(background: str | None, objects: list[tuple[str | None, str | None]]) -> str:
    things = ", ".join(f"{colour or '?'} {shape or '?'}" for colour, shape in objects)
    return f"{things or 'nothing'} on {background or '?'}"
