"""From picture to file to edited picture on the bundled model: methods of each kind of storage."""

import numpy as np
import pytest
import torch

from pivotal.editing.edit import Edit
from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.engine import Engine
from pivotal.errors import EditWithoutEffectError
from pivotal.inversion_file import read_inversion, write_inversion

PROMPT, TARGET = "a red circle on a gray background", "a blue circle on a gray background"
SMALL = (32, 32)
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
        options=METHODS[name], size=SMALL,
    )  # fmt: skip
    write_inversion(inversion, tmp_path / "disc.safetensors")
    again = read_inversion(tmp_path / "disc.safetensors")
    assert again.inverted.noise.dtype == inversion.inverted.noise.dtype
    edited = engine.edit(inversion, TARGET, mutual=MutualSelfAttention(start_step=1))
    from_file = engine.edit(again, TARGET, mutual=MutualSelfAttention(start_step=1))
    assert np.array_equal(edited.pictures[0], from_file.pictures[0])
    assert edited.touched[0]["mutual"].steps == 1
    assert not np.array_equal(edited.pictures[0], edited.source.picture)


def test_an_edit_is_judged_by_the_steps_that_are_replayed(engine, picture):
    """Edit-friendly leaves the noisiest third out: what acts only there acts nowhere."""
    inversion = engine.invert(picture, PROMPT, method="edit-friendly", num_inference_steps=5)
    early = Edit(TARGET, cross_replace_steps=0.2, self_replace_steps=0.2)
    with pytest.raises(EditWithoutEffectError, match="the 4 steps, of 5, that the replay runs"):
        engine.edit(inversion, early)
    weighted = Edit(PROMPT, cross_replace_steps={"red": 0.2}, weights={"red": 5.0})
    with pytest.raises(EditWithoutEffectError, match="weights"):
        engine.edit(inversion, weighted)
    half = Edit(
        TARGET, cross_replace_steps=0.4, self_replace_steps=0.6, blend=("circle",),
        blend_start=0.0, mutual=MutualSelfAttention(start_step=0),
    )  # fmt: skip
    touched = engine.edit(inversion, half).touched[0]
    steps = {name: reached.steps for name, reached in touched.items()}
    assert steps == {"cross": 1, "self": 2, "blend": 4, "mutual": 4}


def test_targets_leave_the_fitted_null_embedding_when_their_window_ends(engine, picture):
    """With the source on its pivots, a target that never takes what was fitted is direct
    inversion's; one that always does is not; a window between is neither.
    """
    windows = {name: {"null_text_steps": end} for name, end in [("never", 0), ("half", 0.5)]}
    edits = [Edit(TARGET, **windows.get(name, {})) for name in ("never", "half", "always")]
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "size": SMALL}
    fitted = engine.invert(picture, PROMPT, method="null-text-parallel", **settings)
    direct = engine.invert(picture, PROMPT, method="direct", num_inference_steps=4, size=SMALL)
    never, half, always = engine.edit(fitted, edits).latents[1:]
    theirs = engine.edit(direct, TARGET, guidance_scale=5.0).latents[1]
    torch.testing.assert_close(never, theirs, rtol=0, atol=1e-5)
    apart = [float((a - b).abs().max()) for a, b in [(never, half), (half, always)]]
    assert min(apart) > 1e-2
    with pytest.raises(ValueError, match=r"null_text_steps=0\.5 means nothing after direct"):
        engine.edit(direct, TARGET, null_text_steps=0.5)


def test_an_inversion_never_asks_for_more_rows_at_once_than_a_batch_of_images(
    engine, picture, monkeypatch
):
    """All timesteps at once are 9 rows here and 50 by default: more than memory holds."""
    sizes, answer = [], engine._runner.denoiser.answer

    def counted(query):
        sizes.append(query.rows)
        return answer(query)

    monkeypatch.setattr(engine._runner.denoiser, "answer", counted)
    engine.invert(
        picture, PROMPT, method="null-text-parallel", num_inference_steps=9, size=SMALL,
        options={"iterations": 1},
    )  # fmt: skip
    assert max(sizes) == 8


@pytest.mark.parametrize("name", ["finite-difference", "k-euler", "ddim"])
def test_a_callback_and_the_record_say_the_timesteps_that_are_asked(
    engine, picture, name, monkeypatch
):
    options = {"grid": "karras"} if name == "k-euler" else {}
    inversion = engine.invert(
        picture, PROMPT, method=name, num_inference_steps=2, guidance_scale=1.0, options=options
    )
    told, asked, answer = [], [], engine._runner.denoiser.answer

    def listening(query):
        asked.append(float(query.timesteps[0]))
        return answer(query)

    def watching(engine, step, timestep, tensors):
        told.append(timestep)
        return {}

    monkeypatch.setattr(engine._runner.denoiser, "answer", listening)
    engine.reconstruct(inversion, callback_on_step_end=watching)
    assert told[:2] == pytest.approx(asked[:2], abs=0.01)
    assert inversion.schedule["timesteps"] == pytest.approx(asked[:2], abs=0.01)
