"""Ctrl-C at any moment: 130, one line, and every file whole or not there."""

import random
import signal
import subprocess
import sys
import time

import pytest

from pivotal.inversion_file import read_inversion

MOMENTS = random.Random(0)
LONG = ("invert", "other.png", "--prompt", "a blue circle", "--steps", 50, "--no-cache")
SHORT = ("invert", "other.png", "--prompt", "a blue circle", "--steps", 2, "--method", "ddim")


def check(done, folder, before, after, cache, names):
    assert "Traceback" not in done.stderr, done.stderr
    assert not [name for name in names(cache) if name.endswith(".part")]
    if done.returncode == 0:
        assert names(folder) == after
        read_inversion(folder / "other.safetensors")
        return
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("pivotal: interrupted\n")
    assert names(folder) in (before, after)
    if after != before and names(folder) == after:
        read_inversion(folder / "other.safetensors")


@pytest.mark.parametrize(
    "moment", [MOMENTS.uniform(0.2, 2.5) for _ in range(3)], ids="{:.3f} s".format
)
def test_in_the_middle_of_long_work(forked, home, cache_folder, names, moment):
    before = names(home)
    done = forked(*LONG, cwd=home, interrupt_after=moment)
    assert done.returncode == 130
    check(done, home, before, before, cache_folder, names)


@pytest.mark.parametrize(
    "moment", [MOMENTS.uniform(0.05, 0.9) for _ in range(8)], ids="{:.3f} s".format
)
def test_while_reading_working_and_writing(forked, home, cache_folder, names, moment):
    before = names(home)
    done = forked(*SHORT, cwd=home, interrupt_after=moment)
    check(done, home, before, before | {"other.safetensors"}, cache_folder, names)


def started(process, home, arguments):
    """A command in a process of its own, as a shell starts it; returns once Ctrl-C is minded."""
    code = "import pivotal.cli.guard, sys; sys.stderr.write('.\\n'); pivotal.cli.main()"
    command = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    command.stderr.readline()
    return command


def interrupted(home, arguments, moment):
    command = started(None, home, arguments)
    time.sleep(moment)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=180)
    return subprocess.CompletedProcess(arguments, command.returncode, out, err)


def test_while_the_libraries_are_loaded(home, cache_folder, names):
    before = names(home)
    done = interrupted(home, LONG, 0.7)
    assert done.returncode == 130
    check(done, home, before, before, cache_folder, names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [MOMENTS.uniform(0.05, 9) for _ in range(25)], ids="{:.3f} s".format
)
def test_at_any_moment_of_a_whole_process(home, cache_folder, names, moment):
    before = names(home)
    done = interrupted(home, SHORT, moment)
    check(done, home, before, before | {"other.safetensors"}, cache_folder, names)
