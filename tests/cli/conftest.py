"""The command line in this process, and in processes of its own."""

import contextlib
import io
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from pivotal.cli import main

PROMPT = "a red circle on a gray background"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory, read_once):
    """No test touches the cache of whoever runs it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOTAL_CACHE", str(folder))
        patch.setenv("COLUMNS", "100")
        yield folder


@pytest.fixture(scope="session")
def pivotal():
    """The command line in this process: what it prints, and the exit code a shell would see."""

    def run(*arguments, cwd):
        out, err, code = io.StringIO(), io.StringIO(), 0
        captured = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(cwd), captured[0], captured[1]:
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as stop:
                code = stop.code or 0
        return Done(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def forked(tmp_path_factory):
    """The command line in a forked process, which has torch already.

    prepare: called in it first. interrupt_after: seconds until it gets SIGINT.
    """

    def run(*arguments, cwd, prepare=None, interrupt_after=None):
        folder = tmp_path_factory.mktemp("process")
        child = os.fork()
        if child == 0:
            _become([str(argument) for argument in arguments], cwd, folder, prepare)
        killer = None
        if interrupt_after is not None:
            killer = threading.Timer(interrupt_after, _interrupt, [child])
            killer.start()
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                pytest.fail(f"{arguments} hangs")
            time.sleep(0.005)
        if killer is not None:
            killer.cancel()
            killer.join()
        code = os.waitstatus_to_exitcode(ended[1])
        return Done(code, (folder / "out").read_text(), (folder / "err").read_text())

    return run


def _interrupt(process):
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGINT)


def _become(arguments, cwd, folder, prepare):
    """The forked process's whole life."""
    code = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        if prepare is not None:
            prepare()
        sys.argv = ["pivotal", *arguments]
        main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def draw(path, size=(128, 96), colour=(220, 40, 40)):
    """A disc on grey; size: (width, height)."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels[(x - size[0] // 2) ** 2 + (y - size[1] // 2) ** 2 < (min(size) // 4) ** 2] = colour
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, pivotal):
    """A folder with photo.png, other.png and cat.safetensors, which is photo.png inverted."""
    folder = tmp_path_factory.mktemp("home")
    draw(folder / "photo.png")
    draw(folder / "other.png", colour=(40, 40, 220))
    done = pivotal(
        "invert", "photo.png", "--prompt", PROMPT, "-o", "cat.safetensors",
        "--steps", 3, "--method", "ddim", "--quiet", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def home(prepared, tmp_path):
    """A copy of the prepared folder, for one test alone."""
    return Path(shutil.copytree(prepared, tmp_path / "home"))


@pytest.fixture(scope="session")
def names():
    """`names(folder)`: all that lies in it, hidden files too."""
    return lambda folder: {str(path.relative_to(folder)) for path in folder.rglob("*")}
