"""Latents as an edit makes them: one object's, driven too far by guidance, among another picture's.

A decoder's group norms see the whole picture, so an object whose latents are out of range tints
what is around it. The decoder is therefore trained on such composites too, towards the picture
that is meant.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from pivotal.bench.shapes.palette import COLOURS, SHAPES
from pivotal.bench.shapes.scenes import Image, Masks, Scene, draw, mask_of, sample_scene

PUSH = 1.5  # an object's mean, away from the batch's, times up to this
CONTRAST = 2.0  # its deviations from its own mean, times up to this
NOISE = 0.3  # of the latents' standard deviation, at most


def edited_pair(rng: np.random.Generator) -> tuple[Image, Image, Masks]:
    """A drawn scene, the same with one object recoloured or reshaped, and where they may differ.

    Two pictures uint8 [64, 64, 3], and latent places bool [16, 16].
    """
    scene = sample_scene(rng)
    place = int(rng.integers(len(scene.objects)))
    thing = scene.objects[place]
    if rng.random() < 0.5:
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        changed = replace(thing, colour=colour, rgb=COLOURS[colour])
    else:
        changed = replace(thing, shape=SHAPES[int(rng.integers(len(SHAPES)))])
    objects = tuple(changed if i == place else other for i, other in enumerate(scene.objects))
    both = mask_of(thing) | mask_of(changed)
    covered: Masks = np.asarray(both.reshape(16, 4, 16, 4).any(axis=(1, 3)))
    spread = int(rng.integers(3))
    if spread:
        covered = np.asarray(ndimage.binary_dilation(covered, iterations=spread))
    return draw(scene)[0], draw(Scene(objects, scene.background))[0], covered


def composite(
    before: torch.Tensor,
    after: torch.Tensor,
    places: torch.Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> torch.Tensor:
    """`after`'s latents at `places`, overdriven, and `before`'s elsewhere: float32 [B, 4, 16, 16].

    places: bool [B, 1, 16, 16].
    """
    rows = before.shape[0]
    push, contrast, noise = (
        torch.from_numpy(rng.uniform(low, high, (rows, 1, 1, 1)).astype(np.float32))
        for low, high in ((1.0, PUSH), (0.8, CONTRAST), (0.0, NOISE))
    )
    count = places.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    own = (after * places).sum(dim=(2, 3), keepdim=True) / count  # [B, 4, 1, 1]
    middle = before.mean(dim=(0, 2, 3), keepdim=True)
    driven = middle + push * (own - middle) + contrast * (after - own)
    grain = torch.randn(before.shape, generator=generator) * noise * before.std()
    return torch.where(places, driven + grain, before)
