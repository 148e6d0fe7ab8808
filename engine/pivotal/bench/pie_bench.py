"""PIE-Bench's own format (Ju et al. 2023, arXiv:2310.01506): a folder of pictures, prompts, masks.

`mapping_file.json` maps an id to `image_path` (under `annotation_images`), `original_prompt`,
`editing_prompt`, `blended_word`, `editing_type_id` and a run-length `mask`. Our rules, stated
because results depend on them:

* Square brackets in prompts mark what changes and are no part of the text: they are taken out.
* The mask is where the picture may change: pairs of start and length over the flattened picture.
  The picture's rim counts as masked, as in the published decoder.
* Background figures are over the pixels outside the mask alone. The published code multiplies both
  pictures by the mask and averages over all pixels, which gives higher decibels.
* Where the mask covers everything there is no background: such a task is left out of those means.
* `blended_word` bounds the edit (LocalBlend) by those of its words that a prompt holds; others, and
  an empty one, bound nothing.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pivotal.bench.errors import ResultsError
from pivotal.bench.evaluation import Task
from pivotal.editing.edit import Edit
from pivotal.images import fit, read_image

MAPPING, PICTURES = "mapping_file.json", "annotation_images"
KINDS = {
    "0": "random", "1": "change object", "2": "add object", "3": "delete object",
    "4": "change attribute content", "5": "change attribute pose", "6": "change attribute colour",
    "7": "change attribute material", "8": "change background", "9": "change style",
}  # fmt: skip
_TEXTS = ("image_path", "original_prompt", "editing_prompt")
_NEEDED = (*_TEXTS, "mask")


def tasks(folder: Path, size: tuple[int, int], limit: int | None = None) -> list[Task]:
    """All tasks of a folder in the order of their ids. size: the model's, (height, width).

    Raises ResultsError for a folder that is not in the format.
    """
    path = folder / MAPPING
    if not path.is_file():
        raise ResultsError(f"{str(folder)!r} has no {MAPPING}; give a folder in PIE-Bench's format")
    try:
        mapping = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ResultsError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(mapping, dict) or not mapping:
        raise ResultsError(f"{str(path)!r} holds no tasks")
    chosen = sorted(mapping)[:limit]
    return [_task(folder, name, mapping[name], size) for name in chosen]


def _task(folder: Path, name: str, entry: Any, size: tuple[int, int]) -> Task:
    if not isinstance(entry, dict):
        raise ResultsError(f"{name} in {MAPPING} is {entry!r}; an object of names is expected")
    missing = [each for each in _NEEDED if each not in entry]
    if missing:
        raise ResultsError(f"{name} in {MAPPING} has no {', '.join(missing)}")
    for each in _TEXTS:
        if not isinstance(entry[each], str):
            raise ResultsError(
                f"{name} in {MAPPING}: {each} is {entry[each]!r}; a text is expected"
            )
    root = (folder / PICTURES).resolve()
    path = (root / entry["image_path"]).resolve()
    if not path.is_relative_to(root):
        raise ResultsError(f"{name}: image_path {entry['image_path']!r} leads out of the folder")
    image = read_image(path)
    height, width = image.pixels.shape[:2]
    mask = decode_mask(entry["mask"], (height, width), name)
    kind = str(entry.get("editing_type_id", "0"))
    prompt, target = (unbracketed(entry[each]) for each in ("original_prompt", "editing_prompt"))
    words = dict.fromkeys(_words(str(entry.get("blended_word", ""))))
    said = {*_words(prompt), *_words(target)}
    edit = Edit(target, blend=tuple(word for word in words if word in said))
    return Task(
        name,
        KINDS.get(kind, kind),
        fit(image, size, "stretch").pixels,
        prompt,
        edit,
        ~_resized(mask, size),
    )


def unbracketed(prompt: str) -> str:
    """`a [red] cat` as `a red cat`, with single spaces."""
    return " ".join(prompt.replace("[", " ").replace("]", " ").split())


def _words(text: str) -> list[str]:
    """Without the punctuation around them."""
    return [word.strip(string.punctuation) for word in text.split()]


def decode_mask(runs: Sequence[int], size: tuple[int, int], name: str = "a mask") -> NDArray[Any]:
    """Pairs of start and length to bool [H, W]; the rim is masked. Runs past the end are cut.

    Raises ResultsError for what is no list of pairs of numbers from 0.
    """
    whole = isinstance(runs, list) and all(isinstance(each, int) and each >= 0 for each in runs)
    if not whole or len(runs) % 2:
        raise ResultsError(f"{name}: a mask is a list of starts and lengths in turn, from 0")
    flat = np.zeros(size[0] * size[1], dtype=np.bool_)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = True
    mask = flat.reshape(size)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    shown = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(shown.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0
