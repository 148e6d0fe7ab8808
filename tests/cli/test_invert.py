"""`pivotal invert` and `pivotal reconstruct`."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import pivotal as package
from pivotal.inversion_file import read_inversion

PROMPT = "a red circle on a gray background"


@pytest.fixture
def quick(pivotal, home):
    def run(*arguments):
        return pivotal(
            "invert", *arguments, "--prompt", PROMPT, "--steps", 2, "--method", "ddim", cwd=home
        )

    return run


def test_one_json_object_with_the_figures(quick):
    record = json.loads(quick("photo.png", "--json", "--no-cache").stdout)
    assert {
        "method", "steps", "guidance_scale", "seconds", "psnr", "vae_psnr", "dominant_error",
        "noise_std_ratio", "model", "family", "device", "dtype", "unet_rows",
    } <= set(record)  # fmt: skip
    assert {"load", "encode", "invert", "decode", "total"} <= set(record["seconds"])
    assert not record["cached"]


def test_the_progress_bar_is_on_stderr_with_the_time_left(quick):
    done = quick("photo.png")
    assert "inverting" in done.stderr
    assert "left" in done.stderr
    assert "saved photo.safetensors" in done.stderr
    assert not done.stdout


def test_the_second_time_the_cache_answers(quick, home, monkeypatch):
    monkeypatch.setenv("PIVOTAL_CACHE", str(home / "kept"))
    first, second = (
        json.loads(quick("photo.png", "--json", "-o", f"{n}.safetensors").stdout) for n in "ab"
    )
    again = json.loads(quick("photo.png", "--json", "-o", "c.safetensors", "--no-cache").stdout)
    assert (first["cached"], second["cached"], again["cached"]) == (False, True, False)
    a, b, c = (read_inversion(home / f"{n}.safetensors").inverted.noise for n in "abc")
    assert a.equal(b)
    assert a.allclose(c)


def test_several_images_are_what_each_is_alone(quick, home):
    done = quick("photo.png", "other.png", "-o", "all", "--json", "--no-cache")
    assert done.returncode == 0, done.stderr
    outputs = [each["outputs"]["inversion"] for each in json.loads(done.stdout)["inversions"]]
    assert outputs == ["all/photo.safetensors", "all/other.safetensors"]
    quick("other.png", "-o", "alone.safetensors", "--no-cache")
    both, alone = (
        read_inversion(home / name) for name in ("all/other.safetensors", "alone.safetensors")
    )
    assert both.inverted.noise.allclose(alone.inverted.noise, atol=1e-4)


def test_each_image_may_have_its_own_prompt(pivotal, home):
    done = pivotal(
        "invert", "photo.png", "other.png", "--prompt", PROMPT, "--prompt", "a blue circle",
        "--steps", 2, "--method", "ddim", "--json", cwd=home,
    )  # fmt: skip
    records = json.loads(done.stdout)["inversions"]
    assert [each["prompt"] for each in records] == [PROMPT, "a blue circle"]


def test_one_bad_image_among_several_is_named_before_any_work(quick, home, names):
    (home / "bad.png").write_bytes(b"nothing")
    before = names(home)
    done = quick("photo.png", "bad.png", "-o", "all", "--quiet")
    assert done.returncode == 2
    assert "bad.png" in done.stderr
    assert names(home) == before


def test_images_of_one_name_are_not_written_over_each_other(quick, home, names):
    (home / "sub").mkdir()
    (home / "sub" / "photo.png").write_bytes((home / "photo.png").read_bytes())
    before = names(home)
    for folder in ([], ["-o", "new"]):  # one that is there, and one that is not yet
        done = quick("photo.png", "sub/photo.png", "--quiet", *folder)
        assert done.returncode == 2
        assert "photo.safetensors" in done.stderr
        assert names(home) == before


def test_size_and_policy_are_heeded(quick, home):
    assert quick("photo.png", "--size", "32x64", "--policy", "pad", "--quiet").returncode == 0
    picture = read_inversion(home / "photo.safetensors").picture
    assert (picture.size, picture.policy) == ((32, 64), "pad")


def test_a_seed_is_refused_where_nothing_is_drawn(quick):
    done = quick("photo.png", "--seed", 3, "--quiet")
    assert done.returncode == 2
    assert "ddim draws no random numbers" in done.stderr


def test_reconstruct_writes_the_picture_and_says_what_was_lost(pivotal, home):
    done = pivotal(
        "reconstruct", "cat.safetensors", "--guidance-scale", 1.5, "--negative-prompt", "blue",
        "--json", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["guidance_scale"], record["negative_prompt"]) == (1.5, "blue")
    assert record["psnr"] > 15
    with Image.open(home / record["outputs"]["picture"]) as picture:
        assert picture.size == (128, 96)  # the photograph's own
        assert json.loads(picture.text["pivotal"])["method"] == "ddim"


def test_a_seed_decides_what_a_method_draws(pivotal, home):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = pivotal(
            "invert", "photo.png", "--prompt", PROMPT, "--method", "edit-friendly", "--steps", 2,
            "--seed", seed, "--no-cache", "--quiet", "-o", f"{name}.safetensors", cwd=home,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    a, b, c = (read_inversion(home / f"{name}.safetensors").inverted.noise for name in "abc")
    assert a.equal(b)
    assert not a.equal(c)


def test_an_inversion_finds_its_models_folder_from_any_other(pivotal, home, tmp_path):
    own = home / "models" / "own"
    shutil.copytree(Path(package.__file__).parent / "bundled" / "shapes", own)
    done = pivotal(
        "invert", "photo.png", "--prompt", PROMPT, "--model", "./models/own", "-o",
        "own.safetensors", "--steps", 2, "--method", "ddim", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = pivotal(
        "edit", home / "own.safetensors", "--target", PROMPT.replace("red", "blue"), cwd=elsewhere
    )
    assert done.returncode == 0, done.stderr
    with Image.open(elsewhere / "own-edit.png") as picture:
        assert str(home) not in picture.text["pivotal"]
