"""Reads a picture back: which shapes in which colours, where, on which background.

Plain image analysis, no learning. FROZEN before any generated picture was judged by it: changing a
threshold here changes what every figure of the benchmark means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2lab

from pivotal.bench.shapes.palette import BACKGROUNDS, COLOURS
from pivotal.bench.shapes.templates import fit_shapes

Floats = NDArray[np.float64]

CONTRAST = 22.0  # Lab distance from the background at which a pixel may belong to an object
SMALLEST = 60  # pixels; the smallest drawn object covers about 180
ALIKE = 0.92  # likeness to a shape's template below which the shape is unknown
CLEAR = 0.001  # by how much the best template must beat the next
COLOUR_REACH = 42.0  # weighted Lab distance beyond which a colour has no name
GROUND_REACH = 24.0
LIGHTNESS = 0.6  # weight of L in naming an object's colour: soft pictures shift it most


@dataclass(frozen=True)
class Finding:
    """One object as read: None where the shape or the colour has no name. Place in pixels."""

    shape: str | None
    colour: str | None
    x: float
    y: float
    radius: float
    likeness: float
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """A picture as read: objects from left to right, and the background's colour name."""

    objects: tuple[Finding, ...]
    background: str | None


def read(image: NDArray[np.uint8]) -> Reading:
    """Read a uint8 [64, 64, 3] picture."""
    lab: Floats = rgb2lab(image)
    ground = estimate_ground(lab)
    contrast = np.linalg.norm(lab - ground, axis=2)
    labels, count = ndimage.label(contrast > CONTRAST)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [label for label in range(1, count + 1) if sizes[label] >= SMALLEST]
    labels = np.where(np.isin(labels, kept), labels, 0)
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    owner = np.where(distance <= 3, labels[tuple(nearest)], 0)
    findings = [
        _read_object(lab, ground, contrast, labels == label, owner == label) for label in kept
    ]
    bare = distance > 3
    name = None
    if bare.sum() >= SMALLEST:
        name = _nearest(np.median(lab[bare], axis=0), _lab_of("grounds"), GROUND_REACH, 1.0)
    return Reading(tuple(sorted(findings, key=lambda f: f.x)), name)


def estimate_ground(lab: Floats) -> Floats:
    """A background that varies linearly over the picture, float64 [64, 64, 3] in Lab.

    It starts from the median of the picture's rim and is fitted twice to the pixels near it.
    """
    height, width = lab.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    plane = np.stack([np.ones(lab.shape[:2]), columns / width - 0.5, rows / height - 0.5], axis=2)
    rim = np.ones((height, width), dtype=np.bool_)
    rim[2:-2, 2:-2] = False
    ground = np.broadcast_to(np.median(lab[rim], axis=0), lab.shape)
    for _ in range(2):
        near = np.linalg.norm(lab - ground, axis=2) < CONTRAST * 0.8
        if near.sum() < SMALLEST:
            break
        fitted, *_ = np.linalg.lstsq(plane[near], lab[near], rcond=None)
        ground = plane @ fitted
    return np.asarray(ground)


def _read_object(
    lab: Floats,
    ground: Floats,
    contrast: Floats,
    component: NDArray[np.bool_],
    owned: NDArray[np.bool_],
) -> Finding:
    """Name the colour of a component's heart, then match its soft mask with every shape."""
    heart = component & (contrast >= np.median(contrast[component]))
    ink = np.median(lab[heart], axis=0)
    direction = ink - ground
    along = ((lab - ground) * direction).sum(axis=2) / np.maximum((direction**2).sum(axis=2), 1.0)
    soft = np.clip(along, 0.0, 1.0) * owned
    fits = sorted(fit_shapes(soft), key=lambda fit: -fit.likeness)
    best = fits[0]
    known = best.likeness >= ALIKE and best.likeness - fits[1].likeness >= CLEAR
    return Finding(
        shape=best.shape if known else None,
        colour=_nearest(ink, _lab_of("colours"), COLOUR_REACH, LIGHTNESS),
        x=best.x,
        y=best.y,
        radius=best.radius,
        likeness=best.likeness,
        mask=soft >= 0.5,
    )


@lru_cache(maxsize=2)
def _lab_of(which: str) -> dict[str, tuple[float, float, float]]:
    palette = COLOURS if which == "colours" else BACKGROUNDS
    return {name: tuple(rgb2lab(np.divide(rgb, 255.0))) for name, rgb in palette.items()}


def _nearest(
    lab: Floats, palette: dict[str, tuple[float, float, float]], reach: float, lightness: float
) -> str | None:
    weights = np.array([lightness, 1.0, 1.0])
    distances = {
        name: float(np.linalg.norm(weights * (lab - np.asarray(colour))))
        for name, colour in palette.items()
    }
    name = min(distances, key=lambda candidate: distances[candidate])
    return name if distances[name] <= reach else None
