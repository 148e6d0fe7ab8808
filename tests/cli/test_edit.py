"""`pivotal edit`, `generate` and `explain`."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from pivotal.cli.frames import MAX_FRAMES, Frames, shown_steps
from pivotal.cli.masks import read_mask
from pivotal.images import fit, read_image
from pivotal.records import mask_of

PROMPT = "a red circle on a gray background"
TARGET = "a blue circle on a gray background"


@pytest.fixture
def edit(pivotal, home):
    def run(*arguments, target=TARGET):
        return pivotal("edit", "cat.safetensors", "--target", target, *arguments, cwd=home)

    return run


def test_one_json_object_picture_and_sheet(edit, home):
    done = edit("--json", "--weight", "blue=2")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {"seconds", "touched", "edit", "outside_mask_psnr", "outputs"} <= set(record)
    assert record["touched"]["layers"] > 0
    assert record["touched"]["steps"] > 0
    assert record["edit"]["weights"] == {"blue": 2.0}
    with Image.open(home / record["outputs"]["picture"]) as picture:
        assert picture.size == (128, 96)
        assert json.loads(picture.text["pivotal"])["edit"]["target"] == TARGET
    with Image.open(home / record["outputs"]["sheet"]) as sheet:
        assert sheet.width > 1000


def test_several_targets_give_a_picture_each(edit, home):
    done = edit("--target", "a green circle on a gray background", "-o", "out.png", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["edits"]) == 2
    assert {"out-1.png", "out-2.png", "out-sheet.png"} <= {p.name for p in home.iterdir()}


def test_pictures_tell_nothing_of_the_machine_and_with_no_metadata_nothing_at_all(edit, home):
    edit("-o", "said.png")
    edit("-o", "mute.png", "--no-metadata")
    with Image.open(home / "said.png") as said, Image.open(home / "mute.png") as mute:
        assert str(home) not in said.text["pivotal"]
        assert set(json.loads(said.text["pivotal"])) >= {"version", "prompt", "method", "edit"}
        assert not {"outputs", "seconds"} & set(json.loads(said.text["pivotal"]))
        assert not mute.info
        assert np.array_equal(said, mute)


@pytest.mark.parametrize("size", [(128, 96), (72, 56)])
def test_outside_the_users_mask_nothing_changes(edit, home, size):
    white = np.zeros((size[1], size[0]), np.uint8)
    white[:, : size[0] // 2] = 255
    Image.fromarray(white).save(home / "mask.png")
    edit("-o", "free.png", "--cross-replace-steps", 0)
    done = edit("-o", "bound.png", "--mask", "mask.png", "--cross-replace-steps", 0)
    assert done.returncode == 0, done.stderr
    free, bound = (np.asarray(Image.open(home / f"{n}.png")).astype(int) for n in ("free", "bound"))
    source = np.asarray(Image.open(home / "photo.png")).astype(int)
    right = np.s_[:, 64:]
    assert np.abs(bound - source)[right].mean() < np.abs(free - source)[right].mean()


def test_a_subtracted_word_leaves_its_region_alone(edit):
    done = edit("--blend", "circle", "--subtract", "background", "--json")
    assert json.loads(done.stdout)["edit"]["subtract"] == ["background"]


def test_generate_makes_the_same_picture_from_the_same_seed(pivotal, home):
    for name, seed in (("a.png", 3), ("b.png", 3), ("c.png", 4)):
        done = pivotal(
            "generate", PROMPT, "--seed", seed, "--steps", 2, "--size", "32x64", "-o", name,
            "--json", cwd=home,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["seed"] == seed
    a, b, c = (np.asarray(Image.open(home / name)) for name in ("a.png", "b.png", "c.png"))
    assert a.shape == (32, 64, 3)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_several_prompts_count_their_seeds_up(pivotal, home):
    done = pivotal("generate", PROMPT, TARGET, "--seed", 5, "--steps", 2, "--json", cwd=home)
    assert [each["seed"] for each in json.loads(done.stdout)["pictures"]] == [5, 6]
    assert (home / "generated-2.png").is_file()


def test_explain_tells_what_edit_then_does(pivotal, edit, home):
    done = pivotal("explain", PROMPT, TARGET, "--steps", 3, "--json", cwd=home)
    planned, made = json.loads(done.stdout), json.loads(edit("--json").stdout)
    assert planned["kind"] == made["edit"]["kind"] == "swap"
    assert planned["touched"] == made["touched"]["controls"]
    assert {"relation": "swapped", "source": "red", "target": "blue"} in planned["words"]


def test_explain_shows_words_tokens_and_windows(pivotal, home):
    shown = pivotal("explain", PROMPT, TARGET, "--steps", 10, cwd=home).stdout
    assert "swapped" in shown
    assert "steps 0 to 7, timesteps 901 to 201" in " ".join(shown.split())


def frames_of(path):
    with Image.open(path) as moving:
        return moving.n_frames, dict(moving.info)


def test_an_animation_shows_each_step_and_a_report_stands_alone(edit, home):
    done = edit(
        "--target", "a green circle on a gray background", "-o", "out.png",
        "--animation", "way.gif", "--report", "page.html", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = [each["outputs"] for each in json.loads(done.stdout)["edits"]]
    assert [each["animation"] for each in outputs] == ["way-1.gif", "way-2.gif"]
    assert frames_of(home / "way-2.gif")[0] == 3
    page = (home / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(prompt in page for prompt in (PROMPT, TARGET, "a green circle"))
    assert str(home) not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


def test_an_edit_animates_methods_that_skip_the_first_steps(pivotal, home):
    done = pivotal(
        "invert", "photo.png", "--prompt", PROMPT, "--method", "edit-friendly", "--steps", 3,
        "--no-cache", "--quiet", "-o", "late.safetensors", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = pivotal(
        "edit", "late.safetensors", "--target", TARGET, "--animation", "late.gif", "--quiet",
        cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert frames_of(home / "late.gif")[0] > 1


def test_prompts_are_shown_as_they_are_written(pivotal, home, monkeypatch):
    monkeypatch.setenv("PIVOTAL_CACHE", str(home / "kept"))
    monkeypatch.setenv("COLUMNS", "200")
    prompt = "a [/a] [red] :smile: circle"
    told = [
        pivotal("generate", prompt, "--steps", 1, cwd=home),
        pivotal("explain", prompt, prompt.replace("circle", "square"), "--steps", 2, cwd=home),
        pivotal(
            "edit", "cat.safetensors", "--target", prompt, "--kind", "refine", cwd=home,
        ),
        pivotal(
            "invert", "photo.png", "--prompt", prompt, "--method", "ddim", "--steps", 1, cwd=home
        ),
        pivotal("cache", "ls", cwd=home),
    ]  # fmt: skip
    assert [done.returncode for done in told] == [0] * len(told), told
    assert all(prompt in told[place].stdout + told[place].stderr for place in (0, 2, 4))


def test_generate_animates_too_and_carries_settings_only_if_wanted(pivotal, home):
    for name, more in (("a.webp", []), ("b.webp", ["--no-metadata"])):
        done = pivotal(
            "generate", PROMPT, "--steps", 2, "--animation", name, *more, "--quiet", cwd=home
        )
        assert done.returncode == 0, done.stderr
    assert frames_of(home / "a.webp")[0] == 2
    assert "exif" in frames_of(home / "a.webp")[1]
    assert "exif" not in frames_of(home / "b.webp")[1]


@pytest.mark.parametrize("steps", [1, 24, 25, 26, 50, 1000])
def test_long_trajectories_are_thinned_evenly_to_their_end(steps):
    shown = shown_steps(steps)
    assert len(shown) == min(steps, MAX_FRAMES)
    assert shown[-1] == steps - 1
    gaps = {b - a for a, b in pairwise(shown)}
    assert len(gaps) <= 2


def test_mutual_self_attention_touches_what_it_says(edit):
    record = json.loads(edit("--mutual-from-step", 1, "--json").stdout)
    assert record["edit"]["mutual"]["start_step"] == 1
    assert record["touched"]["controls"]["mutual"]["steps"] == 2


def test_each_picture_has_the_steps_of_its_own_row_and_batch():
    frames = Frames(edits=True)
    for batch, rows in ((0, 3), (10, 2)):  # more targets than one batch takes
        for step in range(4):
            latents = torch.arange(rows).reshape(rows, 1, 1, 1) + batch + 100 * step
            assert frames(None, step, 0.0, {"latents": latents}) == {}
    ways = [[int(each) for each in way] for way in frames.trajectories()]
    assert ways == [[1 + 100 * s for s in range(4)], [2 + 100 * s for s in range(4)],
                    [11 + 100 * s for s in range(4)]]  # fmt: skip


@pytest.mark.parametrize("feather", [0, 4])
def test_a_box_counts_the_sources_pixels_and_outside_it_they_stay(edit, home, feather):
    """The photograph is 128 wide and 96 high, and all of it was kept."""
    done = edit("-o", "boxed.png", "--mask", "box:40,8,80,88", "--preserve", "pixel",
                "--feather", feather, "--cross-replace-steps", 0, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["outside_mask_psnr"] is None  # identical
    assert (record["edit"]["preserve"], record["edit"]["feather"]) == ("pixel", feather)
    mask = mask_of(record["edit"]["mask"])
    rows, columns = (mask.any(axis) for axis in (1, 0))
    height, width = mask.shape
    assert abs(int(columns.nonzero()[0]) - 40 * width / 128) <= 1
    assert abs(int(columns.sum()) - 40 * width / 128) <= 1
    assert abs(int(rows.sum()) - 80 * height / 96) <= 1
    assert Image.open(home / "boxed.png").size == (128, 96)


def test_a_word_of_the_prompt_is_a_mask(edit):
    done = edit("--mask", "word:circle", "--blend-threshold", 0.4, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["edit"]["mask_words"] == ["circle"]
    assert record["edit"]["blend_threshold"] == 0.4
    assert 0 < mask_of(record["edit"]["mask"]).double().mean() < 1


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("box:1,2,3", "write box:x0,y0,x1,y1"),
        ("box:0,0,500,10", "inside the source's 128 wide and 96 high"),
        ("box:9,9,9,20", "write box"),
        ("word: ", "name a word"),
        ("word:zebra", "zebra"),
    ],
)
def test_a_mask_that_says_nothing_is_named(edit, mask, said):
    done = edit("--mask", mask)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_a_box_outside_what_cropping_kept_is_named(home):
    cropped = fit(read_image(home / "photo.png"), (64, 64), "crop")
    with pytest.raises(ValueError, match="is nowhere inside what was kept of the source"):
        read_mask("box:0,0,10,10", cropped)
