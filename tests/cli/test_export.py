"""What `pivotal export` and `--backend` refuse, in a sentence, before any work."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from pivotal.cli.exporting import staged
from pivotal.cli.guard import Interruption


@pytest.fixture(autouse=True)
def engine_key(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PIVOTAL_ENGINE_KEY", str(tmp_path_factory.mktemp("key") / "engine-key"))


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_rows_that_are_no_span_are_refused_and_leave_nothing(pivotal, tmp_path):
    done = pivotal("export", "onnx", "-o", "there", "--rows", "4:1", cwd=tmp_path)
    refused(done, "4:1", "no span")
    assert not list(tmp_path.iterdir())


def test_sizes_that_the_network_can_not_vary_by_are_refused(pivotal, tmp_path):
    done = pivotal("export", "onnx", "-o", "there", "--height", "64:70", cwd=tmp_path)
    refused(done, "height=64:70", "multiples of 16 pixels")
    assert not list(tmp_path.iterdir())


def test_a_format_that_is_not_exported_is_refused(pivotal, tmp_path):
    done = pivotal("export", "onnx", "-o", "there", "--dtype", "float64", cwd=tmp_path)
    refused(done, "dtype=float64", "accepted are float32, float16, bfloat16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--compile", "--offload", "--tiled-vae", "--backend=onnx"])
def test_an_option_that_an_export_would_not_heed_is_refused(pivotal, tmp_path, option):
    for kind in ("onnx", "tensorrt"):
        done = pivotal("export", kind, "-o", "there", option, cwd=tmp_path)
        refused(done, "no such option", option.partition("=")[0])


def test_a_folder_with_something_else_in_it_is_never_replaced(pivotal, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    refused(pivotal("export", "onnx", "-o", "there", cwd=tmp_path), "not empty", "--force")
    refused(pivotal("export", "onnx", "-o", "there", "--force", cwd=tmp_path), "holds no export")
    assert (tmp_path / "there" / "letter.txt").read_text() == "dear"


def test_a_backend_without_its_export_says_what_makes_one(pivotal, tmp_path):
    made = ("generate", "a red star", "--steps", 2, "-o", "star.png")
    done = pivotal(*made, "--backend", "onnx", cwd=tmp_path)
    refused(done, "pivotal export onnx --model shapes -o DIR")
    done = pivotal(*made, "--backend", "onnx", "--exported", "nowhere", cwd=tmp_path)
    refused(done, "there is no folder 'nowhere'", "pivotal export onnx")
    done = pivotal(*made, "--backend", "tensorrt", "--exported", tmp_path, cwd=tmp_path)
    refused(done, "holds no export that can be read", "pivotal export tensorrt")
    done = pivotal(*made, "--exported", "nowhere", cwd=tmp_path)
    refused(done, "means nothing for backend torch")
    done = pivotal(*made, "--backend", "trt", cwd=tmp_path)
    refused(done, "backend='trt' is unknown", "tensorrt+torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_a_gpu_that_tensorrt_rtx_does_not_build_for_is_refused(pivotal, tmp_path):
    done = pivotal(
        "export", "tensorrt", "--flavour", "tensorrt_rtx", "--sm", "90", "-o", "there", cwd=tmp_path
    )
    refused(done, "sm 90", "89, 120")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_a_timing_cache_that_tensorrt_rtx_would_not_use_is_refused(pivotal, tmp_path):
    done = pivotal(
        "export", "tensorrt", "--flavour", "tensorrt_rtx", "--sm", "89", "-o", "there",
        "--timing-cache", "timings", cwd=tmp_path,
    )  # fmt: skip
    refused(done, "timing_cache='timings'", "means nothing for tensorrt_rtx")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_sizes_beside_an_export_that_has_its_own_are_refused_before_any_work(pivotal, tmp_path):
    done = pivotal(
        "export", "tensorrt", "--flavour", "tensorrt_rtx", "--sm", "89", "--onnx", "nowhere",
        "--height", "64", "-o", "there", cwd=tmp_path,
    )  # fmt: skip
    refused(done, "--onnx has its own --height")
    assert not list(tmp_path.iterdir())


def test_a_finished_export_takes_the_place_of_the_one_before_and_a_failed_one_does_not(tmp_path):
    folder, terminal = tmp_path / "there", SimpleNamespace(interruption=Interruption())

    def fill(content, error=None):
        with staged(folder, terminal, force=True) as place:
            (place / "export.json").write_text(content)
            if error is not None:
                raise error

    fill("first")
    fill("second")
    with pytest.raises(KeyboardInterrupt):
        fill("third", KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (folder / "export.json").read_text() == "second"
