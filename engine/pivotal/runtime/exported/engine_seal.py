"""Which engines our own exporter made: an engine file is code, and its record alone proves nothing.

Whoever can write an engine can write a record with its digest. So what a user's exporter builds is
sealed with a key that only this user can read: engines of other users and machines need the key, or
the explicit flag.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pivotal.errors import BackendError
from pivotal.runtime.exported.record import ExportRecord

_BYTES = 32  # of a key, as SHA-256 has


def key_file() -> Path:
    """PIVOTAL_ENGINE_KEY, or `pivotal/engine-key` in XDG_DATA_HOME, or in ~/.local/share. Read when
    called.
    """
    if own := os.environ.get("PIVOTAL_ENGINE_KEY"):
        return Path(own).expanduser()
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not home.is_absolute():
        home = Path("~/.local/share").expanduser()
    return home / "pivotal" / "engine-key"


def require_key() -> bytes:
    """The user's key, made at the first call, for its owner alone.

    Raises BackendError where it can't be made or read.
    """
    path = key_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            _make(path)
        key = _read(path)
    except OSError as error:
        raise BackendError(
            f"the key that engines are sealed with, {str(path)!r}, can't be made or read: "
            f"{error.strerror}; PIVOTAL_ENGINE_KEY names another file"
        ) from error
    if key is None:
        raise BackendError(
            f"{str(path)!r} is no key of {_BYTES} bytes for its owner alone; move it away, or let "
            "PIVOTAL_ENGINE_KEY name another file"
        )
    return key


def sealed(record: ExportRecord) -> ExportRecord:
    """The same with the seal of this user's key. Raises BackendError without a key."""
    return replace(record, seal=_seal(record, require_key()))


def is_sealed(record: ExportRecord) -> bool:
    """Whether this user's key sealed the record as it is, digests and all."""
    try:
        key = _read(key_file())
    except OSError:  # nothing was built by this user
        return False
    return key is not None and hmac.compare_digest(_seal(record, key), record.seal)


def _seal(record: ExportRecord, key: bytes) -> str:
    content = json.dumps(replace(record, seal="").as_json(), sort_keys=True)
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def _make(path: Path) -> None:
    """Write a new key, whole or not at all. Raises FileExistsError where there is one."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_bytes(secrets.token_bytes(_BYTES))
        os.link(temporary, path)  # another process may have been first
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """None for what others can read or change, or what is no key."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        return None
    key = path.read_bytes()
    return key if len(key) == _BYTES else None
