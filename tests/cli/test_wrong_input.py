"""One sentence that names the value, exit code 2, no traceback, and nothing left behind."""

import os
import resource
import sys

import pytest
import torch

PROMPT = "a red circle on a gray background"
TARGET = "a blue circle on a gray background"
INVERT = ("invert", "photo.png", "--prompt", "x")
EDIT = ("edit", "cat.safetensors", "--target", TARGET)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["invert", "nothing.png", "--prompt", "x"], "nothing.png"),
        (["invert", "photo.png"], "--prompt"),
        (["invert", "photo.png", "--prompt", " "], "--prompt is empty"),
        (["invert", "photo.png", "--prompt", "x", "--prompt", "y"], "2 prompts for 1 images"),
        (["invert", "photo.png", "other.png", "--prompt", "x", "-o", "one.safetensors"], "folder"),
        ([*INVERT, "--method", "magic"], "magic"),
        ([*INVERT, "--model", "no/such/model"], "no/such/model"),
        ([*INVERT, "--steps", "0"], "steps=0"),
        ([*INVERT, "--steps", "three"], "three"),
        ([*INVERT, "--promt", "x"], "--promt"),
        ([*INVERT, "--option", "speed=2"], "speed"),
        ([*INVERT, "--option", "speed"], "name=value"),
        ([*INVERT, "--device", "toaster"], "toaster"),
        ([*INVERT, "--dtype", "int8"], "int8"),
        ([*INVERT, "--size", "big"], "big"),
        ([*INVERT, "--size", "0x64"], "0x64"),
        ([*INVERT, "--size", "63x64"], "63"),
        ([*INVERT, "--policy", "squeeze"], "squeeze"),
        ([*INVERT, "-o", "no/where.safetensors"], "no/where"),
        ([*INVERT, "-o", "photo.png"], ".safetensors"),
        ([*INVERT, "-o", "cat.safetensors"], "--force"),
        (["invert", "photo.png", "--prompt", "circle " * 100, "--steps", "2"], "77"),
        (["reconstruct", "photo.png"], "photo.png"),
        (["edit", "photo.png", "--target", "x"], "photo.png"),
        (["edit", "nothing.safetensors", "--target", "x"], "nothing.safetensors"),
        (["edit", "cat.safetensors", "--target", ""], "--target is empty"),
        ([*EDIT, "-o", "dog.gif"], "dog.gif"),
        ([*EDIT, "-o", "photo.png"], "photo.png"),
        ([*EDIT, "--blend", "unicorn"], "unicorn"),
        ([*EDIT, "--subtract", "circle"], "subtract"),
        ([*EDIT, "--weight", "unicorn=2"], "unicorn"),
        ([*EDIT, "--weight", "blue=very"], "very"),
        ([*EDIT, "--weight", "blue=nan"], "blue=nan"),
        ([*EDIT, "--kind", "magic"], "magic"),
        ([*EDIT, "--cross-replace-steps", "2"], "2"),
        ([*EDIT, "--model", "random:sd9"], "sd9"),
        ([*EDIT, "--animation", "way.mp4"], "way.mp4"),
        ([*EDIT, "--report", "page.pdf"], "page.pdf"),
        ([*EDIT, "--mutual-from-step", "-1"], "-1"),
        ([*EDIT, "--mask", "nothing.png"], "nothing.png"),
        ([*EDIT, "--mask", "cat.safetensors"], "cat.safetensors"),
        (["generate", ""], "PROMPT is empty"),
        (["generate", "x", "--size", "30x30"], "30"),
        (["generate", "x", "--guidance-scale", "nan"], "nan"),
        (["explain", PROMPT, TARGET, "--blend", "unicorn"], "unicorn"),
        (["methods", "magic"], "magic"),
        (["cache", "gc", "--max-size", "much"], "much"),
        (["demo", "-o", "photo.png"], "photo.png"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_input_gets_one_sentence_and_leaves_nothing(pivotal, home, names, arguments, named):
    before = names(home)
    done = pivotal(*arguments, cwd=home)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("pivotal: ")
    assert named in done.stderr
    assert not done.stdout
    assert names(home) == before


def test_memory_that_is_full_gets_one_sentence(pivotal, home, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("pivotal.engine.load", full)
    done = pivotal(*INVERT, cwd=home)
    assert done.returncode == 2
    assert done.stderr.startswith("pivotal: CUDA out of memory")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_defect_of_ours_is_not_called_wrong_input(pivotal, home, monkeypatch):
    monkeypatch.setattr("pivotal.engine.load", lambda *a, **k: {}["missing"])
    with pytest.raises(KeyError):
        pivotal(*INVERT, cwd=home)


@pytest.mark.parametrize(
    "arguments",
    [
        [*EDIT, "-o", "new.png"],
        ["invert", "other.png", "--prompt", "x", "--steps", "2", "--method", "ddim", "--no-cache"],
        ["generate", "a circle", "--steps", "2", "-o", "new.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_full_disk_leaves_nothing(forked, home, names, arguments):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # bytes a file

    before = names(home)
    done = forked(*arguments, "--quiet", cwd=home, prepare=limit)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "can't be written" in done.stderr
    assert names(home) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_result_that_stdout_does_not_take_is_an_error(forked, home):
    def full():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    done = forked("methods", "--json", cwd=home, prepare=full)
    assert done.returncode == 2
    assert done.stderr == (
        "pivotal: the output can't be read or written: No space left on device\n"
    )


def test_a_reader_that_went_away_is_no_traceback(forked, home):
    def unread():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)

    done = forked("methods", "--json", cwd=home, prepare=unread)
    assert done.returncode == 141
    assert not done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(pivotal, home):
    (home / "locked").mkdir(mode=0o500)
    done = pivotal(*EDIT, "-o", "locked/new.png", cwd=home)
    assert done.returncode == 2
    assert "no permission in 'locked'" in done.stderr


def test_what_the_package_logs_is_a_sentence_on_stderr(pivotal, home):
    from PIL import Image

    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(home / "moving.gif", save_all=True, append_images=frames[1:])
    done = pivotal(
        "invert",
        "moving.gif",
        "--prompt",
        "x",
        "--steps",
        1,
        "--method",
        "ddim",
        "--json",
        cwd=home,
    )
    assert done.returncode == 0
    assert "pivotal: 'moving.gif' has several frames" in done.stderr
    assert "several frames" not in done.stdout


def test_main_leaves_the_process_as_it_was(pivotal, home):
    import logging
    import signal

    def state():
        logger = logging.getLogger("pivotal")
        return signal.getsignal(signal.SIGINT), sys.unraisablehook, logger.handlers[:]

    before = state()
    pivotal("methods", "magic", cwd=home)
    assert state() == before
