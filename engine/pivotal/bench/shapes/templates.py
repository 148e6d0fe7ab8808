"""Matches a soft mask with each shape's template, its centre and size left free."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pivotal.bench.shapes.palette import SHAPES
from pivotal.bench.shapes.scenes import inside

Floats = NDArray[np.float64]

POINTS = 22  # template samples a side
EXTENT = 1.4  # template half-width, in radii
SOFTNESS = (0.0, 0.1, 0.2, 0.3)  # blurs a template is tried with, in radii: sharp to soft


@dataclass(frozen=True)
class Fit:
    """A shape laid over a mask: centre and radius in pixels, likeness up to 1."""

    shape: str
    x: float
    y: float
    radius: float
    likeness: float


@dataclass(frozen=True)
class Template:
    """A shape of radius 1 sampled on a grid, sharp to soft, with its area and centroid height."""

    coverages: tuple[Floats, ...]
    area: float
    drop: float


@lru_cache(maxsize=16)
def template_of(shape: str) -> Template:
    """Coverages float64 [POINTS, POINTS] over [-EXTENT, EXTENT]^2."""
    fine = 8
    axis = (np.arange(POINTS * fine) + 0.5) / (POINTS * fine) * 2 * EXTENT - EXTENT
    hits = inside(shape, axis[None, :].astype(np.float32), axis[:, None].astype(np.float32))
    unit = POINTS * fine / (2 * EXTENT)
    blurred = [ndimage.gaussian_filter(hits.astype(float), soft * unit) for soft in SOFTNESS]
    coverages = tuple(b.reshape(POINTS, fine, POINTS, fine).mean(axis=(1, 3)) for b in blurred)
    area = float(hits.mean() * (2 * EXTENT) ** 2)
    drop = float((hits * axis[:, None]).sum() / hits.sum())
    return Template(coverages, area, drop)


def fit_shapes(soft: Floats) -> list[Fit]:
    """The best placement of every shape over a soft mask float64 [H, W] in [0, 1]."""
    total = soft.sum()
    rows, columns = np.mgrid[0 : soft.shape[0], 0 : soft.shape[1]] + 0.5
    x, y = (soft * columns).sum() / total, (soft * rows).sum() / total
    fits = []
    for shape in SHAPES:
        template = template_of(shape)
        radius = float(np.sqrt(total / template.area))
        fit = Fit(shape, float(x), float(y - radius * template.drop), radius, 0.0)
        for reach, spread in ((1.6, 0.12), (0.8, 0.06), (0.4, 0.03), (0.2, 0.015)):
            fit = _search(soft, template, fit, reach, spread)
        fits.append(fit)
    return fits


def _search(soft: Floats, template: Template, start: Fit, reach: float, spread: float) -> Fit:
    """The best of 27 placements around a start: centres within `reach` pixels."""
    steps = np.array([0.0, -1.0, 1.0])
    radii = start.radius * (1 + spread * steps)
    axis = (np.arange(POINTS) + 0.5) / POINTS * 2 * EXTENT - EXTENT
    xs = start.x + reach * steps[:, None] + radii[:, None, None] * axis  # [radius, x, POINTS]
    ys = start.y + reach * steps[:, None] + radii[:, None, None] * axis
    shape = (3, 3, 3, POINTS, POINTS)  # [radius, y, x, row, column]
    rows = np.broadcast_to(ys[:, :, None, :, None], shape)
    columns = np.broadcast_to(xs[:, None, :, None, :], shape)
    sampled = ndimage.map_coordinates(soft, [rows - 0.5, columns - 0.5], order=1, mode="constant")
    # What the mask holds beyond the template's window still counts against it.
    cell = (2 * EXTENT / POINTS * radii)[:, None, None] ** 2
    beyond = np.maximum(soft.sum() / cell - sampled.sum(axis=(3, 4)), 0.0)
    likeness = np.max([_likeness(sampled, cover, beyond) for cover in template.coverages], axis=0)
    r, row, column = np.unravel_index(int(np.argmax(likeness)), likeness.shape)
    return Fit(
        start.shape,
        float(start.x + reach * steps[column]),
        float(start.y + reach * steps[row]),
        float(radii[r]),
        float(likeness[r, row, column]),
    )


def _likeness(sampled: Floats, cover: Floats, beyond: Floats) -> Floats:
    """Pearson correlation over the window, with the mask's mass outside it counted against it.

    Unlike intersection over union it does not care how faint or soft the mask is.
    """
    pattern = cover - cover.mean()
    centred = sampled - sampled.mean(axis=(3, 4), keepdims=True)
    energy = (centred**2).sum(axis=(3, 4)) + beyond
    scale = np.sqrt(np.maximum(energy * (pattern**2).sum(), 1e-12))
    likeness: Floats = (centred * pattern).sum(axis=(3, 4)) / scale
    return likeness
