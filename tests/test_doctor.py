"""`pivotal doctor`: what can run here, and why not the rest; it never fails itself."""

import json
import subprocess
import sys

import torch

from pivotal.doctor import examine


def found():
    return {each.name: each for each in examine()}


def test_what_every_machine_of_the_tests_has_is_usable():
    findings = found()
    for name in ("pivotal", "torch", "cpu", "diffusers", "transformers", "bundled model"):
        assert findings[name].usable, findings[name]
    assert torch.__version__ in findings["torch"].detail


def test_cuda_is_usable_exactly_where_torch_says_so():
    usable = any(each.usable for name, each in found().items() if name.startswith("cuda"))
    assert usable == torch.cuda.is_available()


def test_every_backend_is_named_with_a_reason():
    for name in ("triton", "xformers", "onnxruntime", "tensorrt", "tensorrt_rtx"):
        assert found()[name].detail


def test_a_cache_that_can_not_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "file" / "cache"))
    assert not found()["cache"].usable
    assert "PIVOTAL_CACHE" in found()["cache"].detail
    monkeypatch.setenv("PIVOTAL_CACHE", str(tmp_path / "new" / "cache"))
    assert found()["cache"].usable
    assert not (tmp_path / "new").exists()  # looking makes nothing


def test_it_answers_where_torch_is_broken(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open\\nmore')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pivotal", "doctor", "--json"],
        capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert findings["torch"] == {
        "usable": False, "detail": "can't be imported: libcudart.so.13: cannot open",
    }  # fmt: skip
    assert not findings["cpu"]["usable"]
    assert not findings["cuda"]["usable"]


def test_looking_imports_no_optional_library():
    code = (
        "import sys\n"
        "from pivotal.doctor import examine\n"
        "assert 'torch' not in sys.modules\n"
        "examine()\n"
        "heavy = {'xformers', 'onnxruntime', 'tensorrt', 'diffusers', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
