"""Procedurally drawn 64 x 64 scenes: what is in them, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pivotal.bench.shapes.palette import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    RGB,
    SHAPES,
    TEXTURES,
    is_held_out,
)

SIDE = 64
SUPERSAMPLE = 4

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Thing:
    """One object: its words, and where and how it is drawn (pixels, pixel centres at +0.5)."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: RGB


@dataclass(frozen=True)
class Background:
    """The ground: its words and its texture (period in pixels, strength in levels)."""

    colour: str
    texture: str
    rgb: RGB
    angle: float = 0.0
    period: float = 16.0
    phase: float = 0.0
    strength: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """One or two objects, left to right, on a background."""

    objects: tuple[Thing, ...]
    background: Background


def inside(shape: str, x: Floats, y: Floats) -> Masks:
    """Which points lie in a shape of radius 1 around the origin; y points down."""
    if shape == "circle":
        return _within(x, y, 1.0)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.9
    if shape == "triangle":
        return (y <= 0.85) & (np.abs(x) * 1.95 <= (y + 1.1) * 1.12)
    if shape == "star":
        return _inside_star(x, y, outer=1.2, inner=0.52)
    if shape == "cross":
        across, down = np.abs(x), np.abs(y)
        return (np.maximum(across, down) <= 1.0) & (np.minimum(across, down) <= 0.34)
    if shape == "ring":
        return _within(x, y, 1.0) & ~_within(x, y, 0.54)
    raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")


def _within(x: Floats, y: Floats, radius: float) -> Masks:
    within: Masks = x * x + y * y <= radius * radius
    return within


def _inside_star(x: Floats, y: Floats, outer: float, inner: float) -> Masks:
    """Five points, one of them up: each point folded onto one edge from a tip to a notch."""
    fifth = 2 * np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2)
    radius = np.hypot(x, y)
    notch_x, notch_y = inner * np.cos(fifth / 2), inner * np.sin(fifth / 2)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    within: Masks = (px - outer) * notch_y - py * (notch_x - outer) <= 0
    return within


def coverage(thing: Thing) -> tuple[Floats, tuple[slice, slice]]:
    """How much of each pixel a thing covers, float32 in [0, 1], and the window it lies in."""
    reach = 1.25 * thing.radius + 1
    left, top = max(int(thing.x - reach), 0), max(int(thing.y - reach), 0)
    right, bottom = min(int(thing.x + reach) + 1, SIDE), min(int(thing.y + reach) + 1, SIDE)
    columns = _subpixels(left, right, thing.x, thing.radius)
    rows = _subpixels(top, bottom, thing.y, thing.radius)
    hits = inside(thing.shape, columns[None, :], rows[:, None])
    height, width = bottom - top, right - left
    blocks = hits.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE)
    return blocks.mean(axis=(1, 3), dtype=np.float32), (slice(top, bottom), slice(left, right))


def _subpixels(first: int, last: int, centre: float, radius: float) -> Floats:
    count = (last - first) * SUPERSAMPLE
    points = first + (np.arange(count, dtype=np.float32) + 0.5) / SUPERSAMPLE
    return ((points - centre) / radius).astype(np.float32)


def mask_of(thing: Thing) -> Masks:
    """The pixels that a thing covers by at least half, bool [64, 64]."""
    covered, window = coverage(thing)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[window] = covered >= 0.5
    return mask


def draw(scene: Scene) -> tuple[Image, Masks]:
    """Draw a scene: the image uint8 [64, 64, 3], and each object's mask bool [objects, 64, 64]."""
    canvas = draw_background(scene.background)
    for thing in scene.objects:
        covered, window = coverage(thing)
        ink = np.asarray(thing.rgb, dtype=np.float32)
        canvas[window] += covered[..., None] * (ink - canvas[window])
    masks = np.stack([mask_of(thing) for thing in scene.objects])
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks


@lru_cache(maxsize=1)
def _grid() -> tuple[Floats, Floats]:
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) - SIDE / 2
    return axis[None, :], axis[:, None]


def draw_background(ground: Background) -> Floats:
    """The background alone, float32 [64, 64, 3] in levels 0 to 255."""
    x, y = _grid()
    along = np.float32(np.cos(ground.angle)) * x + np.float32(np.sin(ground.angle)) * y
    turn = np.float32(2 * np.pi / ground.period)
    wave: Floats
    if ground.texture == "plain":
        wave = np.zeros((SIDE, SIDE), dtype=np.float32)
    elif ground.texture == "gradient":
        wave = np.divide(along, SIDE / 2, dtype=np.float32)
    elif ground.texture == "striped":
        wave = np.tanh(2 * np.sin(turn * along + ground.phase))
    elif ground.texture == "checkered":
        squares = np.sin(turn * x + ground.phase) * np.sin(turn * y + ground.phase)
        wave = np.tanh(3 * squares)
    elif ground.texture == "speckled":
        wave = _speckles(ground.seed)
    else:
        raise ValueError(f"unknown texture {ground.texture!r}; one of {', '.join(TEXTURES)}")
    base = np.asarray(ground.rgb, dtype=np.float32)
    canvas: Floats = base + np.float32(ground.strength) * wave[..., None]
    return canvas


def _speckles(seed: int) -> Floats:
    """Soft dots on a jittered grid of 8 x 8 cells, float32 [64, 64] in [-0.4, 1]."""
    rng = np.random.default_rng(seed)
    x, y = _grid()
    wave = np.full((SIDE, SIDE), -0.4, dtype=np.float32)
    centres = (np.arange(8) - 3.5) * 8
    for row in centres:
        jitter = rng.uniform(-2.5, 2.5, size=(8, 2))
        for column, (dx, dy) in zip(centres, jitter, strict=True):
            top, left = int(row + dy + 26), int(column + dx + 26)
            window = (slice(max(top, 0), top + 13), slice(max(left, 0), left + 13))
            near_x = x[0, window[1]] - np.float32(column + dx)
            near_y = y[window[0], 0] - np.float32(row + dy)
            bump = np.exp(-near_y * near_y / 5)[:, None] * np.exp(-near_x * near_x / 5)
            wave[window] += 1.4 * bump
    return np.minimum(wave, 1.0)


def sample_scene(rng: np.random.Generator, objects: int | None = None) -> Scene:
    """A training scene: three quarters hold one object; no triple of it is held out."""
    count = objects if objects is not None else (1 if rng.random() < 0.75 else 2)
    while True:
        ground = sample_background(rng, _choice(rng, tuple(BACKGROUNDS)))
        words = [(_choice(rng, SHAPES), _choice(rng, tuple(COLOURS))) for _ in range(count)]
        held = any(is_held_out(shape, colour, ground.colour) for shape, colour in words)
        if not held and len({colour for _, colour in words}) == count:
            break
    if count == 1:
        return Scene((_place_alone(rng, *words[0]),), ground)
    return Scene(_place_pair(rng, words), ground)


def sample_held_out(rng: np.random.Generator, triple: tuple[str, str, str]) -> Scene:
    """A scene with the one object and the background that a (held-out) triple names."""
    shape, colour, background = triple
    ground = sample_background(rng, background)
    return Scene((_place_alone(rng, shape, colour),), ground)


def sample_background(rng: np.random.Generator, colour: str) -> Background:
    """A background of the named colour, half of them plain."""
    texture = "plain" if rng.random() < 0.5 else _choice(rng, TEXTURES[1:])
    return Background(
        colour=colour,
        texture=texture,
        rgb=_jitter(rng, BACKGROUNDS[colour], 5),
        angle=float(rng.uniform(0, 2 * np.pi)),
        period=float(rng.uniform(13, 18)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        strength=float(rng.uniform(9, 13)),
        seed=int(rng.integers(2**31)),
    )


def _place_alone(rng: np.random.Generator, shape: str, colour: str) -> Thing:
    size = _choice(rng, tuple(RADII))
    radius = RADII[size] * float(rng.uniform(0.95, 1.05))
    margin = 1.22 * radius + 1
    x, y = rng.uniform(margin, SIDE - margin, size=2)
    return Thing(shape, colour, size, float(x), float(y), radius, _jitter(rng, COLOURS[colour], 6))


def _place_pair(rng: np.random.Generator, words: list[tuple[str, str]]) -> tuple[Thing, Thing]:
    """Two things side by side, at least 3 pixels apart."""
    while True:
        sizes = [_choice(rng, ("small", "medium")) for _ in words]
        radii = [RADII[size] * float(rng.uniform(0.95, 1.05)) for size in sizes]
        reach = [1.2 * radius for radius in radii]
        if sum(reach) * 2 + 5 <= SIDE:
            break
    slack = SIDE - 2 * sum(reach) - 5
    before, between = np.sort(rng.uniform(0, slack, size=2))
    xs = (1 + before + reach[0], 4 + between + 2 * reach[0] + reach[1])
    ys = [float(rng.uniform(r + 1, SIDE - r - 1)) for r in reach]
    left, right = (
        Thing(shape, colour, size, float(x), y, radius, _jitter(rng, COLOURS[colour], 6))
        for (shape, colour), size, x, y, radius in zip(words, sizes, xs, ys, radii, strict=True)
    )
    return left, right


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _jitter(rng: np.random.Generator, rgb: RGB, reach: int) -> RGB:
    red, green, blue = np.clip(np.add(rgb, rng.integers(-reach, reach + 1, size=3)), 0, 255)
    return int(red), int(green), int(blue)
