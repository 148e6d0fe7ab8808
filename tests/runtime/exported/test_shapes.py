"""The bundled model, whole: exported, and the same inversion edited in torch and outside it."""

import contextlib
import shlex
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pivotal.cli import main
from pivotal.demo import subjects
from pivotal.engine import Engine
from pivotal.errors import BackendError
from pivotal.inversion_file import read_inversion, write_inversion
from pivotal.model.load import load
from pivotal.runtime.exported.onnx_export import export_onnx
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.tensorrt_api import api_of
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build_engines

pytestmark = pytest.mark.slow
SOURCE, TARGET = "a red star on a gray background", "a blue star on a gray background"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All five networks of `shapes`, for up to 18 rows of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("shapes")
    export_onnx(load("shapes"), ShapeProfile(Span(1, 18), Span(64, 64), Span(64, 64)), folder)
    return folder


@pytest.fixture(scope="module")
def engines(exported):
    return Engine.load("shapes"), Engine.load("shapes", backend="onnx", exported=exported)


@pytest.fixture(scope="module")
def inversion(engines, tmp_path_factory):
    """Of a drawn star, made by torch and read from its file."""
    path = tmp_path_factory.mktemp("inversion") / "star.safetensors"
    picture = engines[0].generate(SOURCE, num_inference_steps=10, seed=2).images[0]
    write_inversion(
        engines[0].invert(picture, SOURCE, method="direct", num_inference_steps=10), path
    )
    return read_inversion(path)


def agree(mine, torchs):
    assert (mine - torchs).abs().max() < 1e-4 * max(1.0, torchs.abs().max())
    signal = torchs.square().mean() / (mine - torchs).square().mean()
    assert 10 * signal.log10() > 80  # decibels


def test_an_edit_with_local_blend_of_torchs_inversion_is_torchs(engines, inversion):
    torchs, mine = (engine.edit(inversion, TARGET, blend="auto") for engine in engines)
    agree(mine.latents, torchs.latents)
    assert mine.touched == torchs.touched
    assert abs(mine.source.psnr - torchs.source.psnr) < 0.01


def test_an_inversion_without_gradients_is_torchs(engines, inversion):
    torchs, mine = (
        engine.invert(
            inversion.picture.pixels, SOURCE, method="ddim", num_inference_steps=5
        ).inverted.noise
        for engine in engines
    )
    agree(mine, torchs)


def test_a_guided_sample_is_torchs(engines):
    torchs, mine = (
        engine.generate(TARGET, num_inference_steps=5, seed=3, output_type="pt").images
        for engine in engines
    )
    agree(mine, torchs)


def test_null_text_is_refused_by_onnx_and_done_by_onnx_with_torch(engines, exported, inversion):
    asked = {"method": "null-text", "num_inference_steps": 2}
    pixels = inversion.picture.pixels
    with pytest.raises(BackendError, match="the onnx backend can't answer NoiseGradient"):
        engines[1].invert(pixels, SOURCE, **asked)
    hybrid = Engine.load("shapes", backend="onnx+torch", exported=exported)
    mine = hybrid.invert(pixels, SOURCE, **asked)
    torchs = engines[0].invert(pixels, SOURCE, **asked)
    agree(mine.inverted.noise, torchs.inverted.noise)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_engines_for_two_gpus_are_built_from_the_same_files(exported, tmp_path):
    options = BuildOptions(sm=("89", "120"), buckets=(2, 4))
    record = build_engines(load("shapes"), exported, tmp_path, api_of("tensorrt_rtx"), options)
    for name in record.files:
        plan = (tmp_path / name).read_bytes()
        assert b"sm89" in plan
        assert b"sm120" in plan


README = (Path(__file__).parents[3] / "README.md").read_text()
BUNDLED = Path(str(resources.files("pivotal"))) / "bundled"


def test_the_demos_scene_that_torch_inverted_is_edited_by_the_commands_of_the_readme(
    exported, tmp_path, monkeypatch
):
    section = README.split("## Outside PyTorch")[1].split("\n## ")[0]
    edit = shlex.split(next(line for line in section.splitlines() if "--backend onnx" in line))
    assert edit[:3] == ["pivotal", "edit", "out/demo/scene.safetensors"]
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shapes-onnx").symlink_to(exported)
    outside = edit[edit.index("--backend") :]
    scene = next(each for each in subjects() if each.stem == "scene")
    assert scene.edit.target in edit
    with contextlib.chdir(tmp_path):
        Path("out/demo").mkdir(parents=True)
        picture = str(BUNDLED / "pictures" / scene.file)
        asked = ("--prompt", scene.prompt, "--method", "direct", "--steps", "10")
        call("invert", picture, *asked, "-o", "out/demo/scene.safetensors")
        call(*edit[1:], "-o", "onnx.png")
        call(*[word for word in edit[1:] if word not in outside], "-o", "torch.png")
        mine, torchs = (np.asarray(Image.open(f"{name}.png")) for name in ("onnx", "torch"))
    assert np.abs(mine.astype(int) - torchs).max() <= 1
    assert mine.std() > 10  # a picture


def call(*words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
