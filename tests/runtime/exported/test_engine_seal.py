"""Whose engines load without being asked for: those of this user's own exporter."""

import os
import threading
from dataclasses import replace

import pytest

from pivotal.errors import BackendError
from pivotal.runtime.exported.engine_seal import is_sealed, key_file, require_key, sealed
from pivotal.runtime.exported.record import EngineFacts, digest, read_record
from pivotal.runtime.exported.tensorrt_denoiser import is_ours

FACTS = EngineFacts("tensorrt_rtx", "1.7", ("89",), (2, 4), False, False, ())


@pytest.fixture
def key(tmp_path, monkeypatch):
    path = tmp_path / "mine" / "engine-key"
    monkeypatch.setenv("PIVOTAL_ENGINE_KEY", str(path))
    return path


@pytest.fixture
def engines(small, tmp_path):
    """Some files in the place of engines, and the record that whoever wrote them would write."""
    folder = tmp_path / "engines"
    folder.mkdir()
    for name in ("unet.engine", "unet-plain.engine"):
        (folder / name).write_bytes(name.encode())
    return folder, replace(small.record, engine=FACTS).with_digests(folder)


def test_what_was_sealed_is_ours_until_anything_in_it_is_changed(key, engines):
    folder, record = engines
    own = sealed(record)
    assert is_sealed(own)
    own.write(folder)
    assert is_sealed(read_record(folder))
    assert is_ours(read_record(folder), folder, allow_foreign=False)
    assert not is_sealed(replace(own, engine=replace(FACTS, checked=("89",))))
    assert not is_sealed(replace(own, files={**own.files, "unet.engine": "0" * 64}))


def test_engines_whose_record_is_right_are_refused_from_whoever_has_another_key(
    key, engines, monkeypatch
):
    folder, record = engines
    theirs = sealed(record)
    monkeypatch.setenv("PIVOTAL_ENGINE_KEY", str(key.with_name("mine")))
    for foreign in (record, theirs):  # no key here yet; then one
        with pytest.raises(BackendError, match=r"not built by this user's .*--allow-foreign-eng"):
            is_ours(foreign, folder, allow_foreign=False)
        assert not is_ours(foreign, folder, allow_foreign=True)
        require_key()
    monkeypatch.setenv("PIVOTAL_ENGINE_KEY", str(key))
    assert is_ours(theirs, folder, allow_foreign=False)
    (folder / "unet-plain.engine").write_bytes(b"other code")
    assert theirs.files["unet-plain.engine"] != digest(folder / "unet-plain.engine")
    with pytest.raises(BackendError, match=r"unet-plain\.engine' is not what was built"):
        is_ours(theirs, folder, allow_foreign=False)


def test_all_who_build_at_once_have_one_key_that_nobody_else_can_read(key):
    found = []
    builders = [threading.Thread(target=lambda: found.append(require_key())) for _ in range(8)]
    for each in builders:
        each.start()
    for each in builders:
        each.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert key.stat().st_mode & 0o777 == 0o600
    assert os.listdir(key.parent) == [key.name]
    assert key.read_bytes() == found[0]


def test_a_key_that_others_can_read_or_that_is_none_seals_nothing(key, engines):
    own = sealed(engines[1])
    key.chmod(0o644)
    assert not is_sealed(own)
    with pytest.raises(BackendError, match="no key of 32 bytes for its owner alone"):
        sealed(engines[1])
    key.chmod(0o600)
    assert is_sealed(own)
    key.write_bytes(b"short")
    assert not is_sealed(own)
    with pytest.raises(BackendError, match="no key of 32 bytes"):
        require_key()


def test_a_key_that_can_not_be_made_is_refused_with_what_names_another(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIVOTAL_ENGINE_KEY", str(tmp_path / "file" / "key"))
    with pytest.raises(BackendError, match=r"can't be made or read: .*PIVOTAL_ENGINE_KEY names"):
        require_key()


def test_a_key_lies_with_the_users_data(monkeypatch, tmp_path):
    monkeypatch.delenv("PIVOTAL_ENGINE_KEY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert key_file() == tmp_path / "pivotal" / "engine-key"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert key_file() == tmp_path / "home" / ".local" / "share" / "pivotal" / "engine-key"
