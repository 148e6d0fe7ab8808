"""The cache of inversions: what it keeps, what it drops, and that it is never fooled."""

import errno
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pivotal.cache import InversionCache, default_cache_folder
from pivotal.code_version import code_version
from pivotal.images import fit, read_image
from pivotal.inversion.base import Inverted
from pivotal.inversion_file import Inversion, read_inversion, write_inversion


def make(number, **changes):
    picture = read_image(np.full((32, 32, 3), number % 256, np.uint8))
    inversion = Inversion(
        picture=fit(picture, (32, 32), "crop"),
        prompt=f"number {number}",
        method="ddim",
        options={"guidance_scale": 1.0},
        guidance_scale=7.5,
        num_inference_steps=4,
        latents=torch.full((1, 4, 8, 8), float(number)),
        inverted=Inverted(torch.full((1, 4, 8, 8), -float(number))),
        model="shapes",
        family="shapes",
        fingerprint="f" * 64,
        image_digest=picture.digest,
        schedule={"timesteps": [751.0, 501.0, 251.0, 1.0]},
        report={"dtype": "float32", "psnr": 29.0},
    )
    return replace(inversion, **changes)


@pytest.fixture
def cache(tmp_path):
    return InversionCache(tmp_path / "cache")


def used_at(cache, key, seconds):
    """Pretend that an entry was last used so many seconds ago."""
    at = time.time() - seconds
    os.utime(cache.folder / f"{key}.safetensors", (at, at))


def size_of_one(tmp_path):
    write_inversion(make(1), tmp_path / "one.safetensors")
    return (tmp_path / "one.safetensors").stat().st_size


def test_what_is_put_is_got(cache):
    inversion = make(7)
    key = cache.put(inversion)
    again = cache.get(key)
    assert key == cache.key_of(inversion)
    assert torch.equal(again.inverted.noise, inversion.inverted.noise)
    assert np.array_equal(again.picture.pixels, inversion.picture.pixels)
    assert again.prompt == "number 7"


def test_what_was_never_put_is_not_there(cache):
    assert cache.get(cache.key_of(make(1))) is None
    assert not cache.folder.exists()  # looking makes nothing
    assert cache.list() == []
    assert cache.clear().entries == 0


@pytest.mark.parametrize(
    "change",
    [
        {"image_digest": "0" * 64},
        {"prompt": "another"},
        {"fingerprint": "0" * 64},
        {"schedule": {"timesteps": [750.0, 500.0, 250.0, 0.0]}},
        {"method": "null-text"},
        {"options": {"guidance_scale": 1.5}},
        {"report": {"dtype": "float16"}},
        {"report": {"dtype": "float32", "precision": {"autoencoder": "bfloat16"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_thing_an_inversion_comes_from_changes_its_key(cache, change):
    assert cache.key_of(make(1)) != cache.key_of(make(1, **change))


def test_the_guidance_of_replays_does_not_change_the_key(cache):
    assert cache.key_of(make(1)) == cache.key_of(make(1, guidance_scale=7.0))


def test_size_and_policy_change_the_key(cache):
    source = read_image(np.zeros((40, 48, 3), np.uint8))
    keys = {
        cache.key_of(make(1, picture=fit(source, size, policy)))
        for size in ((32, 32), (32, 48))
        for policy in ("crop", "pad", "stretch")
    }
    assert len(keys) == 6


def test_another_version_of_the_code_has_other_keys(cache, monkeypatch):
    before = cache.key_of(make(1))
    monkeypatch.setattr("pivotal.code_version.__version__", "999")
    assert InversionCache(cache.folder).key_of(make(1)) != before


def test_a_changed_method_has_other_keys(tmp_path, monkeypatch):
    for name in ("pivotal/inversion", "pivotal_kernels"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("sampling", "model", "runtime", "images"):
        (tmp_path / "pivotal" / name).mkdir()
    for name in ("schedule.py", "query.py", "inversion/ddim.py"):
        (tmp_path / "pivotal" / name).write_text("a = 1\n")
    monkeypatch.setattr("pivotal.code_version.resources.files", lambda package: tmp_path / package)
    before = code_version()
    assert code_version() == before
    (tmp_path / "pivotal/inversion/ddim.py").write_text("a = 2\n")
    assert code_version() != before


def test_figures_of_the_run_do_not_change_the_key(cache):
    assert cache.key_of(make(1)) == cache.key_of(make(1).with_report({"psnr": 12.0}))


def test_the_least_recently_used_go_first(tmp_path):
    size = size_of_one(tmp_path)
    cache = InversionCache(tmp_path / "cache", max_bytes=int(2.5 * size))
    first, second = cache.put(make(1)), cache.put(make(2))
    used_at(cache, first, 20)
    used_at(cache, second, 10)
    assert cache.get(first) is not None  # now the most recently used
    third = cache.put(make(3))
    assert {entry.key for entry in cache.list()} == {first, third}
    assert cache.get(second) is None


def test_what_is_larger_than_the_limit_costs_the_others_nothing(tmp_path, caplog):
    size = size_of_one(tmp_path)
    cache = InversionCache(tmp_path / "cache", max_bytes=2 * size)
    key = cache.put(make(1))
    large = make(2, inverted=Inverted(torch.zeros(1, 4, 8, 8), {"much": torch.zeros(1, 9999)}))
    with caplog.at_level(logging.WARNING):
        assert cache.put(large) is None
    assert "is not cached; the limit is" in caplog.text
    assert [entry.key for entry in cache.list()] == [key]


def test_the_list_tells_what_is_there(cache):
    keys = [cache.put(make(number)) for number in (1, 2)]
    used_at(cache, keys[1], 100)
    newest, oldest = cache.list()
    assert (newest.key, oldest.key) == (keys[0], keys[1])
    assert (newest.prompt, newest.method, newest.model) == ("number 1", "ddim", "shapes")
    assert newest.bytes == newest.path.stat().st_size
    assert newest.last_used > oldest.last_used
    assert json.loads(json.dumps(newest.record()))["num_inference_steps"] == 4


def test_gc_to_a_limit_and_clear_say_what_went(cache):
    for number in range(4):
        cache.put(make(number))
    size = cache.list()[0].bytes
    gone = cache.gc(2 * size)
    assert (gone.entries, gone.bytes) == (2, 2 * size)
    assert cache.clear().entries == 2
    assert cache.list() == []
    with pytest.raises(ValueError, match="max_bytes=-1"):
        cache.gc(-1)


def test_what_a_crashed_writer_left_is_swept_but_not_what_another_is_writing(cache):
    cache.put(make(1))
    left, writing = (cache.folder / f".pivotal-{name}.part" for name in ("left", "writing"))
    for path in (left, writing):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    assert cache.gc().entries == 1
    assert not left.exists()
    assert writing.exists()


def test_files_of_others_in_the_folder_are_left_alone(cache):
    cache.put(make(1))
    (cache.folder / "mine.safetensors").write_bytes(b"mine")
    assert len(cache.list()) == 1
    cache.clear()
    assert [path.name for path in cache.folder.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_entry_is_dropped_and_logged(cache, caplog, damage):
    key = cache.put(make(1))
    path = cache.folder / f"{key}.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1  # one bit of one latent
    path.write_bytes({"cut": data[:-50], "flipped": data, "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert cache.get(key) is None
    assert "dropped" in caplog.text
    assert not path.exists()


def test_a_damaged_entry_is_not_listed(cache):
    sound, cut = cache.put(make(1)), cache.put(make(2))
    path = cache.folder / f"{cut}.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert [entry.key for entry in cache.list()] == [sound]
    assert not path.exists()


def test_an_entry_that_can_not_be_read_just_now_is_kept(cache, caplog, monkeypatch):
    key = cache.put(make(1))
    real = Path.open

    def refuse(path, *arguments, **options):
        if path.suffix == ".safetensors":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert cache.get(key) is None
        assert cache.list() == []
    assert "Too many open files" in caplog.text
    assert cache.get(key) is not None


def test_an_entry_under_anothers_key_is_dropped(cache, caplog):
    key, other = cache.put(make(1)), cache.key_of(make(2))
    (cache.folder / f"{key}.safetensors").rename(cache.folder / f"{other}.safetensors")
    with caplog.at_level(logging.WARNING):
        assert cache.get(other) is None
    assert "another key" in caplog.text
    assert cache.list() == []


def test_a_folder_that_cannot_be_made_is_logged_and_costs_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = InversionCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert cache.put(make(1)) is None
    assert "is not cached" in caplog.text
    assert cache.get(cache.key_of(make(1))) is None
    assert cache.list() == []


def test_a_full_disk_is_logged_and_leaves_nothing(cache, caplog):
    kept = cache.put(make(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes: as if the disk ended there
    try:
        with caplog.at_level(logging.WARNING):
            assert cache.put(make(2)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "is not cached" in caplog.text
    assert [path.stem for path in cache.folder.iterdir()] == [kept]


def test_a_cached_inversion_is_an_inversion_file(cache):
    key = cache.put(make(3))
    assert read_inversion(cache.folder / f"{key}.safetensors").prompt == "number 3"


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match=f"max_bytes={limit}"):
        InversionCache(tmp_path, limit)


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PIVOTAL_CACHE": "/a/b"}, "/a/b"),
        ({"PIVOTAL_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/pivotal/inversions"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/pivotal/inversions"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/pivotal/inversions"),
        ({}, "/home/me/.cache/pivotal/inversions"),
    ],
)
def test_the_default_folder_is_read_from_the_environment_when_asked(monkeypatch, variables, folder):
    for name in ("PIVOTAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(default_cache_folder()) == folder


def _use(folder, limit, seed, answers):
    """One of the processes that share a folder: how often it found something, and what it said."""
    said = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(said))
    cache, chance, hits = InversionCache(folder, limit), random.Random(seed), 0
    for _ in range(120):
        made = make(chance.randrange(8))
        found = cache.get(cache.key_of(made))
        if found is None:
            cache.put(made)
            continue
        hits += 1
        assert torch.equal(found.inverted.noise, made.inverted.noise)
        assert found.prompt == made.prompt
        cache.list()
    answers.put((hits, said.getvalue()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_share_a_folder(tmp_path):
    """Each puts, gets and sweeps at once under a limit of few entries; none ever reads a wrong or
    half-written one.
    """
    limit = 4 * size_of_one(tmp_path)
    forked = multiprocessing.get_context("fork")
    answers = forked.Queue()
    workers = [
        forked.Process(target=_use, args=(tmp_path / "cache", limit, seed, answers))
        for seed in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
        hits, said = answers.get(timeout=10)
        assert "dropped" not in said
        assert hits > 0
    cache = InversionCache(tmp_path / "cache", limit)
    cache.gc()
    assert 0 < sum(entry.bytes for entry in cache.list()) <= limit
    assert not list(cache.folder.glob("*.part"))
