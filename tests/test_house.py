"""The house itself: layout, import boundaries, and what an import may not do."""

import ast
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "engine" / "pivotal").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels" / "pivotal_kernels").rglob("*.py"))


def imported(path):
    """Top-level packages that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["engine", "kernels", "benchmarks", "tests"])
def test_source_roots_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_and_benchmarks_hold_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not list((ROOT / "benchmarks").rglob("__init__.py"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_never_import_the_engine(path):
    assert not imported(path) & {"pivotal", "diffusers", "transformers"}


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_never_imports_benchmarks_or_pickle(path):
    forbidden = {"baselines", "shapes", "tests", "pickle"}
    if "bench" not in path.parts:
        forbidden |= {"skimage", "scipy", "matplotlib", "pynvml"}  # the extra `bench` has them
    assert not imported(path) & forbidden


def test_one_file_alone_knows_the_unets_internals():
    knowing = [
        path.name
        for path in ENGINE
        if any(word in path.read_text() for word in ("set_processor", "down_blocks", "to_q("))
    ]
    assert knowing == ["unet.py"]


@pytest.mark.parametrize(
    "path",
    [p for p in ENGINE if p.parent.name in ("inversion", "sampling", "editing")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_algorithms_import_no_model_and_no_runtime(path):
    source = path.read_text()
    assert "pivotal.model" not in source
    assert "pivotal.runtime" not in source
    assert not imported(path) & {"diffusers", "transformers"}


@pytest.mark.parametrize("path", [*ENGINE, *KERNELS], ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_do_not_print(path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    ]
    assert not calls


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


_NO_NETWORK = (
    "import os, sys\n"
    "def watch(event, arguments):\n"
    "    if event in ('socket.connect', 'socket.getaddrinfo', 'urllib.Request'):\n"
    "        os.write(2, f'{event} {arguments}'.encode())\n"
    "        os._exit(9)\n"  # no library can swallow this, as it could an exception
    "sys.addaudithook(watch)\n"
)


def test_the_watch_over_the_network_sees_what_is_swallowed():
    done = run_python(
        f"{_NO_NETWORK}import socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "except OSError: pass\n"
    )
    assert done.returncode == 9
    assert "socket" in done.stderr


def test_importing_every_public_name_touches_no_cuda_and_no_network():
    done = run_python(
        f"{_NO_NETWORK}import pivotal, pivotal.engine, pivotal.cli.commands, pivotal_kernels\n"
        "import pivotal.figures, pivotal_kernels.routed_attention, torch\n"
        "for each in (pivotal, pivotal.figures, pivotal_kernels.routed_attention):\n"
        "    for name in each.__all__: getattr(each, name)\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert torch.get_default_dtype() is torch.float32\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["pivotal", "pivotal.cli", "pivotal.cli.commands"])
def test_importing_the_package_or_the_command_line_is_cheap(module):
    done = run_python(
        f"import sys, {module}\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_every_module_the_bundled_model_and_the_type_marker(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "pivotal = pivotal.cli:main" in wheel.read(points).decode()
    lying = {
        str(path.relative_to(root))
        for root in (ROOT / "engine", ROOT / "kernels")
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == lying
    assert {"pivotal/py.typed", "pivotal_kernels/py.typed"} <= packed
    assert sum(name.startswith("pivotal/bundled/shapes/") for name in packed) >= 10
