"""What is there is never destroyed unasked, and results appear together or not at all."""

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pivotal.cli.guard import Interruption, guarded
from pivotal.cli.outputs import check_folder, check_outputs, free, made, staged
from pivotal.errors import OutputError

TARGET = "a blue circle on a gray background"


def test_a_named_file_is_replaced_only_with_force(pivotal, home):
    (home / "mine.png").write_bytes(b"precious")
    words = ("edit", "cat.safetensors", "--target", TARGET, "-o", "mine.png")
    done = pivotal(*words, cwd=home)
    assert done.returncode == 2
    assert "'mine.png' exists; name another file, or give --force" in done.stderr
    assert (home / "mine.png").read_bytes() == b"precious"
    assert pivotal(*words, "--force", cwd=home).returncode == 0
    assert (home / "mine.png").read_bytes() != b"precious"


def test_a_sheet_beside_a_named_file_is_guarded_too(pivotal, home):
    (home / "mine-sheet.png").write_bytes(b"precious")
    done = pivotal("edit", "cat.safetensors", "--target", TARGET, "-o", "mine.png", cwd=home)
    assert (done.returncode, "mine-sheet.png" in done.stderr) == (2, True)
    assert not (home / "mine.png").exists()


def test_a_name_of_our_own_is_a_free_one(pivotal, home):
    for _ in range(2):
        assert pivotal("reconstruct", "cat.safetensors", cwd=home).returncode == 0
    assert (home / "cat-reconstruction.png").is_file()
    assert (home / "cat-reconstruction-2.png").is_file()
    assert free(home / "cat-reconstruction.png").name == "cat-reconstruction-3.png"


def test_a_link_to_nowhere_counts_as_there(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone")
    assert free(tmp_path / "link.png").name == "link-2.png"
    with pytest.raises(OutputError, match="exists"):
        check_outputs([tmp_path / "link.png"], force=False)


def test_two_results_in_one_file_are_refused(tmp_path):
    with pytest.raises(OutputError, match="two results"):
        check_outputs([tmp_path / "a.png", tmp_path / "." / "a.png"], force=True)


def write(places):
    for path, place in places.items():
        place.write_text(path.name)


def test_staged_results_appear_together(tmp_path, names):
    (tmp_path / "sub").mkdir()
    paths = [tmp_path / "a", tmp_path / "sub" / "b"]
    with staged(paths, Interruption(), force=False) as places:
        write(places)
        assert not any(path.exists() for path in paths)
    assert names(tmp_path) == {"a", "sub", "sub/b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_before_the_end_leaves_nothing(tmp_path, names, error):
    def fail():
        with staged([tmp_path / "a", tmp_path / "b"], Interruption(), force=False) as places:
            places[tmp_path / "a"].write_text("whole")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("force", [False, True])
def test_where_one_can_not_be_moved_none_is(tmp_path, names, force):
    paths = [tmp_path / "a", tmp_path / "b"]

    def collide():
        with staged(paths, Interruption(), force=force) as places:
            write(places)
            (tmp_path / "b").mkdir()  # meanwhile, by somebody else
            (tmp_path / "b" / "full").touch()

    with pytest.raises(OutputError, match="/b' "):
        collide()
    assert names(tmp_path) == {"b", "b/full"}


@pytest.mark.parametrize("links", [True, False])  # FAT has no hard links
def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path, names, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", without_links)

    def meet():
        paths = [tmp_path / "a", tmp_path / "b"]
        with staged(paths, Interruption(), force=False) as places:
            write(places)
            (tmp_path / "b").write_text("precious")

    with pytest.raises(OutputError, match="/b' was made by another program meanwhile"):
        meet()
    assert names(tmp_path) == {"b"}
    assert (tmp_path / "b").read_text() == "precious"


@pytest.mark.parametrize("links", [True, False])
def test_with_force_old_results_come_back_where_a_new_one_can_not_be_moved(
    tmp_path, names, monkeypatch, links
):
    if not links:
        monkeypatch.setattr("os.link", without_links)
    (tmp_path / "a").write_text("old")

    def collide():
        paths = [tmp_path / "a", tmp_path / "b"]
        with staged(paths, Interruption(), force=True) as places:
            write(places)
            (tmp_path / "b").mkdir()

    with pytest.raises(OutputError, match="/b' can't be written"):
        collide()
    assert names(tmp_path) == {"a", "b"}
    assert (tmp_path / "a").read_text() == "old"


def without_links(*paths, **options):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_folder_that_only_seems_writable_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("os.access", lambda *arguments: True)
    with pytest.raises(OutputError, match="can't write into '/proc'"):
        check_outputs([Path("/proc/a.png")], force=False)
    with pytest.raises(OutputError, match="can't write into '/proc'"):
        check_folder(Path("/proc/new"))


def test_an_interrupt_that_a_library_swallowed_still_leaves_nothing(tmp_path, names):
    interruption = Interruption()

    def swallow():
        with staged([tmp_path / "a"], interruption, force=False) as places:
            write(places)
            with suppress(KeyboardInterrupt):  # as some libraries do
                interruption.interrupt(2, None)

    with pytest.raises(KeyboardInterrupt):
        swallow()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("way", "force"), [("link", False), ("replace", True)])
def test_an_interrupt_while_results_are_moved_waits(tmp_path, names, monkeypatch, way, force):
    interruption, moved = Interruption(), []
    real = getattr(os, way)

    def move(source, target):
        interruption.interrupt(2, None)
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, way, move)
    paths = [tmp_path / "a", tmp_path / "b"]
    with staged(paths, interruption, force=force) as places:
        write(places)
    assert len(moved) == 2
    assert interruption.asked
    assert names(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_ended_leaves_nothing_half_written(tmp_path, names, number):
    def run(arguments, interruption):
        with staged([tmp_path / "a"], interruption, force=False) as places:
            write(places)
            os.kill(os.getpid(), number)
            time.sleep(5)
        return 0

    child = os.fork()
    if child == 0:
        code = 99
        signal.signal(number, signal.SIG_DFL)  # started under nohup, it is ignored
        try:
            guarded(run, None)
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert names(tmp_path) == set()


def test_folders_made_for_results_go_again_if_there_are_none(tmp_path, names):
    def fail():
        with made(tmp_path / "new" / "deep"):
            assert (tmp_path / "new" / "deep").is_dir()
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert names(tmp_path) == set()
