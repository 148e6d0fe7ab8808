"""`pivotal methods`, `models` and `cache`."""

import json

import pytest

import pivotal as pivotal_package
from pivotal.backends import BACKENDS
from pivotal.inversion.registry import METHODS


def test_methods_lists_all_with_papers_and_costs(pivotal, tmp_path):
    listed = json.loads(pivotal("methods", "--json", cwd=tmp_path).stdout)["methods"]
    assert [each["name"] for each in listed] == list(METHODS)
    assert all({"title", "paper", "rows", "stores", "options"} <= set(each) for each in listed)
    shown = pivotal("methods", cwd=tmp_path).stdout
    assert all(name in shown for name in METHODS)


def test_methods_says_which_backends_run_each_alone(pivotal, tmp_path):
    listed = json.loads(pivotal("methods", "--json", cwd=tmp_path).stdout)["methods"]
    by_name = {each["name"]: each["backends"] for each in listed}
    assert by_name["ddim"] == ["torch", "onnx", "tensorrt"]
    assert by_name["null-text"] == ["torch"]
    assert all("torch" in each for each in by_name.values())
    assert "onnx, tensorrt" in pivotal("methods", "edict", cwd=tmp_path).stdout


def test_a_methods_page_says_at_which_guidance_it_inverts(pivotal, tmp_path):
    def page(name):
        shown = pivotal("methods", name, cwd=tmp_path).stdout.replace("│", " ")
        return " ".join(shown.split())

    assert "the guidance that it is sampled back at" in page("null-text")
    assert "unless --option guidance_scale is given" in page("fixed-point")
    for name, method in METHODS.items():
        (record,) = json.loads(pivotal("methods", name, "--json", cwd=tmp_path).stdout)["methods"]
        assert record["fits_guidance"] == method.fits_guidance


def test_what_torch_answers_is_what_is_listed():
    assert pivotal_package.Engine.load("shapes").denoiser.answers == BACKENDS["torch"]


def test_one_methods_options_are_those_that_option_takes(pivotal, tmp_path):
    (method,) = json.loads(pivotal("methods", "null-text", "--json", cwd=tmp_path).stdout)[
        "methods"
    ]
    defaults = {each["name"]: each["default"] for each in method["options"]}
    assert defaults["inner_steps"] == 10
    assert "guidance_scale" not in defaults  # it has an option of the command
    METHODS["null-text"].options_from(defaults)
    assert "--option inner_steps=10" in pivotal("methods", "null-text", cwd=tmp_path).stdout


def test_models_lists_what_load_takes_without_loading_or_asking(pivotal, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    monkeypatch.setattr("pivotal.model.load.load", None)
    listed = json.loads(pivotal("models", "--json", cwd=tmp_path).stdout)["models"]
    shapes = next(each for each in listed if each["name"] == "shapes")
    assert shapes["size"] == [64, 64]
    assert shapes["bytes"] > 10**6
    assert {"random:sd1", "random:sd2", "random:sdxl"} <= {each["name"] for each in listed}
    assert "owner/name" in pivotal("models", cwd=tmp_path).stdout


@pytest.fixture
def kept(pivotal, home, monkeypatch):
    """A cache of two inversions."""
    monkeypatch.setenv("PIVOTAL_CACHE", str(home / "kept"))
    for name in ("photo.png", "other.png"):
        done = pivotal(
            "invert", name, "--prompt", f"a {name}", "--steps", 1, "--method", "ddim", cwd=home
        )
        assert done.returncode == 0, done.stderr
    return home / "kept"


def test_cache_ls_gc_and_clear(pivotal, kept, home):
    listed = json.loads(pivotal("cache", "ls", "--json", cwd=home).stdout)
    assert [each["prompt"] for each in listed["entries"]] == ["a other.png", "a photo.png"]
    assert listed["folder"] == str(kept)
    assert "a photo.png" in pivotal("cache", "ls", cwd=home).stdout
    most = listed["entries"][0]["bytes"] + 10
    gone = json.loads(pivotal("cache", "gc", "--max-size", most, "--json", cwd=home).stdout)
    assert gone["removed"]["files"] == 1
    left = json.loads(pivotal("cache", "ls", "--json", cwd=home).stdout)["entries"]
    assert [each["prompt"] for each in left] == ["a other.png"]
    assert "removed 1 files" in pivotal("cache", "clear", cwd=home).stderr
    assert not list(kept.iterdir())


def test_an_empty_cache_is_no_error(pivotal, tmp_path, monkeypatch):
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "none"))
    assert json.loads(pivotal("cache", "ls", "--json", cwd=tmp_path).stdout)["entries"] == []
    assert pivotal("cache", "clear", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "none").exists()
