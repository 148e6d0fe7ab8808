"""Animations that hold their frames, their times and their last picture."""

import os

import numpy as np
import pytest
from PIL import Image

from pivotal.errors import OutputError
from pivotal.figures import animation_extension, save_animation
from pivotal.figures.animation import MAX_FRAMES
from pivotal.images import psnr, read_image, read_settings

KINDS = [".gif", ".webp"]


def frames(count=5, height=16, width=24):
    """Each frame one plain colour, with a bright square that moves."""
    made = []
    for number in range(count):
        frame = np.full((height, width, 3), (40, 30 * number % 256, 90), np.uint8)
        frame[2:8, 2 + number : 8 + number] = (240, 200, 30)
        made.append(frame)
    return made


def played(path):
    """Every frame as RGB pixels, and how long it stays, in milliseconds."""
    with Image.open(path) as image:
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            shown.append((np.array(image.convert("RGB")), image.info["duration"]))
        return shown, image.info["loop"]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_play_in_order_for_ever_and_the_last_is_held(kind, tmp_path):
    path = tmp_path / f"a{kind}"
    save_animation(frames(), path, milliseconds=120, hold_milliseconds=2000, side=48)
    shown, loop = played(path)
    assert [duration for _, duration in shown] == [120] * 4 + [2000]
    assert loop == 0
    for (pixels, _), frame in zip(shown, frames(), strict=True):
        assert pixels.shape == (32, 48, 3)
        assert psnr(pixels, frame.repeat(2, axis=0).repeat(2, axis=1)) > 28


def test_a_gif_of_few_colours_is_exact(tmp_path):
    save_animation(frames(), tmp_path / "a.gif", side=16)
    for (pixels, _), frame in zip(played(tmp_path / "a.gif")[0], frames(), strict=True):
        assert np.array_equal(pixels, frame)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_frames_give_the_same_bytes(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    for name in ("a", "b"):
        save_animation(list(noise), tmp_path / f"{name}{kind}", labels=["one"] * 4)
    assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()
    assert sorted(os.listdir(tmp_path)) == [f"a{kind}", f"b{kind}"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_stand_under_the_picture_and_leave_it_alone(kind, tmp_path):
    plain, told = tmp_path / f"plain{kind}", tmp_path / f"told{kind}"
    save_animation(frames(2), plain, side=96)
    save_animation(frames(2), told, side=96, labels=["step 1 of 2", "step 2 of 2, at last"])
    without, with_labels = played(plain)[0], played(told)[0]
    height = without[0][0].shape[0]
    for (bare, _), (labelled, _) in zip(without, with_labels, strict=True):
        assert labelled.shape[0] > height
        assert labelled[height:].min() < 100  # ink
        assert psnr(labelled[: height - 16], bare[: height - 16]) > 28


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_large_frames_and_still_frames_are_animations_too(kind, tmp_path):
    path = tmp_path / f"a{kind}"
    save_animation(frames(1), path)
    assert read_image(path).size == (160, 240)
    large = [np.full((300, 280, 3), level, np.uint8) for level in (10, 200)]
    save_animation(large, path)
    assert played(path)[0][1][0].shape == (300, 280, 3)
    save_animation([large[0]] * 3, path)  # equal frames may merge, and WebP makes them a still
    assert psnr(read_image(path).pixels, large[0]) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_settings_travel_with_an_animation(kind, tmp_path):
    path = tmp_path / f"a{kind}"
    save_animation(frames(2), path, metadata={"pivotal": '{"prompt": "caf\\u00e9"}'})
    assert read_settings(path) == {"prompt": "café"}
    save_animation(frames(2), path)
    assert read_settings(path) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"frames": []}, "of 0 frames"),
        ({"frames": frames(1) * (MAX_FRAMES + 1)}, "of 1001 frames"),
        ({"frames": [*frames(1), *frames(1, 16, 16)]}, "16 x 16, 16 x 24"),
        ({"frames": [frame / 255 for frame in frames()]}, "pixels are float64"),
        ({"labels": ["one"]}, "1 labels for 5 frames"),
        ({"milliseconds": 5}, "milliseconds is 5"),
        ({"hold_milliseconds": 10**9}, "hold_milliseconds is 1000000000"),
        ({"side": 1}, "frames of 1 pixels"),
        ({"frames": frames(300), "side": 4096}, "give fewer or smaller"),
        ({"path": "a.mp4"}, r"'a\.mp4' is neither"),
    ],
)
def test_an_impossible_animation_is_refused_by_name(arguments, sentence, tmp_path):
    given = {"frames": frames(), "path": "a.gif", **arguments}
    given["path"] = tmp_path / given["path"] if given["path"] == "a.gif" else given["path"]
    with pytest.raises(ValueError, match=sentence):
        save_animation(**given)
    assert not os.listdir(tmp_path)


def test_an_unwritable_path_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match=r"a\.gif' can't be written"):
        save_animation(frames(), tmp_path / "nowhere" / "a.gif")
    assert not os.listdir(tmp_path)
    assert animation_extension("A.GIF") == ".gif"
