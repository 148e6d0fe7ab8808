"""From picture to file to edited picture on the bundled model: methods of each kind of storage."""

import numpy as np
import pytest

from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.engine import Engine
from pivotal.inversion_file import read_inversion, write_inversion

PROMPT, TARGET = "a red circle on a gray background", "a blue circle on a gray background"
METHODS = {
    "k-euler": {"grid": "karras"},
    "direct": {},
    "negative-prompt": {"proximal": "soft"},
    "null-text-parallel": {"iterations": 1},
    "edict": {"mixing": 0.9},
    "belm": {},
    "edit-friendly": {"skip": 0.0, "seed": 3},
}


@pytest.fixture(scope="module")
def engine():
    return Engine.load("shapes", device="cpu")


@pytest.fixture(scope="module")
def picture():
    """A red disc on grey."""
    y, x = np.mgrid[:64, :64]
    inside = (x - 30) ** 2 + (y - 34) ** 2 < 15**2
    return np.where(inside[..., None], [200, 40, 40], [128, 128, 128]).astype(np.uint8)


@pytest.mark.parametrize("name", METHODS)
def test_an_inversion_edits_the_same_from_its_file(engine, picture, name, tmp_path):
    inversion = engine.invert(
        picture, PROMPT, method=name, num_inference_steps=2, guidance_scale=2.0,
        options=METHODS[name],
    )  # fmt: skip
    write_inversion(inversion, tmp_path / "disc.safetensors")
    again = read_inversion(tmp_path / "disc.safetensors")
    assert again.inverted.noise.dtype == inversion.inverted.noise.dtype
    edited = engine.edit(inversion, TARGET, mutual=MutualSelfAttention(start_step=1))
    from_file = engine.edit(again, TARGET, mutual=MutualSelfAttention(start_step=1))
    assert np.array_equal(edited.pictures[0], from_file.pictures[0])
    assert edited.touched[0]["mutual"].steps == 1
    assert not np.array_equal(edited.pictures[0], edited.source.picture)
