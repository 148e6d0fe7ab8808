"""Whether an edited picture shows the wanted scene, as the frozen oracle reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pivotal.bench.shapes.edits import Case
from pivotal.bench.shapes.oracle import Finding, read
from pivotal.bench.shapes.scenes import SIDE, Scene, Thing, mask_of

PLACE = 4.0  # pixels an object's centre may be off
ANYWHERE = SIDE  # an added object has no place of its own
GROWN = 1.03  # of the radius, for a re-weighting that is seen
SIZES = 0.2  # by how much of it a radius may miss the wanted one, where the size was edited
DILATION = 3  # pixels around the changed objects that an edit may change too


def succeeded(case: Case, picture: NDArray[np.uint8]) -> bool:
    """Exactly the wanted objects, each with its shape, colour and place, on the wanted background.

    picture: uint8 [64, 64, 3]. An added object may be anywhere; a size counts where it was edited.
    """
    reading = read(picture)
    if reading.background != case.wanted.background.colour:
        return False
    if len(reading.objects) != len(case.wanted.objects):
        return False
    pairs = zip(_as_wanted(reading.objects, case.wanted), case.wanted.objects, strict=True)
    return all(_is(found, thing, case) for found, thing in pairs)


def _as_wanted(found: Sequence[Finding], wanted: Scene) -> list[Finding]:
    """Both are left to right; where the sides were swapped, by colour."""
    by_colour = {each.colour: each for each in found}
    if {thing.colour for thing in wanted.objects} == set(by_colour):
        return [by_colour[thing.colour] for thing in wanted.objects]
    return list(found)


def _is(found: Finding, thing: Thing, case: Case) -> bool:
    if (found.shape, found.colour) != (thing.shape, thing.colour):
        return False
    reach = ANYWHERE if case.kind == "add object" and thing not in case.scene.objects else PLACE
    if np.hypot(found.x - thing.x, found.y - thing.y) > reach:
        return False
    if case.kind == "change size":
        return abs(found.radius / thing.radius - 1) <= SIZES
    if case.kind == "re-weight":
        return found.radius >= GROWN * case.scene.objects[0].radius
    return True


def unedited(case: Case) -> NDArray[np.bool_]:
    """Where the picture must stay as it is: bool [64, 64], exact but for `DILATION` pixels.

    A new background leaves the objects, and a new object everything but itself.
    """
    if case.scene.background != case.wanted.background:
        return np.asarray(ndimage.binary_erosion(_masks(case.scene.objects), iterations=1))
    changed = set(case.scene.objects) ^ set(case.wanted.objects)
    touched = ndimage.binary_dilation(_masks(sorted(changed, key=str)), iterations=DILATION)
    return np.asarray(~touched)


def _masks(things: Sequence[Thing]) -> NDArray[np.bool_]:
    return reduce(np.logical_or, (mask_of(thing) for thing in things))
