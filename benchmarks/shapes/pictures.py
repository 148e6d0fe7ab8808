"""Write the demo's two pictures: `python -m shapes.pictures` (PYTHONPATH=benchmarks)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image as Pictures

from pivotal.bench.shapes.palette import BACKGROUNDS, COLOURS
from pivotal.bench.shapes.scenes import Background, Scene, Thing, draw
from shapes.photographs import held_out_photograph

SCENE = Scene(
    (Thing("star", "red", "large", 34.0, 33.0, 18.6, COLOURS["red"]),),
    Background("gray", "checkered", BACKGROUNDS["gray"], period=16.0, phase=0.6, strength=12.0),
)
PICTURES = [
    {
        "label": "drawn scene",
        "file": "scene.png",
        "prompt": "a red star on a gray background",
        "target": "a yellow star on a gray background",
        "edit": {"blend": "auto"},
    },
    {
        "label": "photograph",
        "file": "cat.png",
        "prompt": "a cat on a beige background",
        "target": "a cat on a white background",
        "edit": {"self_replace_steps": 0.9, "blend": "auto"},
    },
]
LICENCES = """scene.png
    Drawn by benchmarks/shapes/pictures.py; under this project's own licence. Its (shape, colour,
    background) triple was never in the bundled model's training.

cat.png
    "Chelsea the cat" by Stefan van der Walt, released under CC0 (no copyright restrictions), as
    carried by scikit-image (skimage.data.chelsea): the middle square, at 256 x 256 pixels. Never in
    the bundled model's training.
"""


def write_pictures(folder: Path) -> None:
    """The drawn scene, the photograph, their captions and their licences."""
    folder.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(draw(SCENE)[0]).save(folder / "scene.png", optimize=True)
    Pictures.fromarray(held_out_photograph(256)).save(folder / "cat.png", optimize=True)
    (folder / "pictures.json").write_text(json.dumps(PICTURES, indent=2) + "\n")
    (folder / "LICENCES.txt").write_text(LICENCES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("engine/pivotal/bundled/pictures"))
    write_pictures(parser.parse_args().folder)


if __name__ == "__main__":
    main()
