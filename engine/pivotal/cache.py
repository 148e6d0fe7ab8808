"""A folder of inversions, each under the digest of all that it came from: nothing is inverted
twice.

Several processes may share a folder. Entries appear and vanish whole, by renaming and unlinking,
and there is no lock that could be left behind.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .code_version import code_version
from .errors import (
    InversionFileError,
    MissingInversionError,
    OutputError,
    UnreadableInversionError,
)
from .inversion_file import Inversion, read_document, read_inversion, write_inversion

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 2 * 1024**3
_SUFFIX = ".safetensors"
_STALE = 3600.0  # seconds after which a temporary file belongs to nobody alive


@dataclass(frozen=True)
class CacheEntry:
    """One inversion in the cache. last_used: seconds since 1970."""

    key: str
    path: Path
    bytes: int
    last_used: float
    prompt: str
    method: str
    model: str
    num_inference_steps: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "key": self.key,
            "bytes": self.bytes,
            "last_used": self.last_used,
            "prompt": self.prompt,
            "method": self.method,
            "model": self.model,
            "num_inference_steps": self.num_inference_steps,
        }


@dataclass(frozen=True)
class Removed:
    """How many files a clean-up took away, and the bytes that they held."""

    entries: int = 0
    bytes: int = 0


class InversionCache:
    """Inversions in `folder`, `max_bytes` in all; the least recently used go first.

    The folder is made when something is first kept.
    """

    def __init__(self, folder: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes}; at least 1 is expected")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._code = code_version()

    def key(
        self,
        *,
        image_digest: str,
        size: tuple[int, int],
        policy: str,
        fingerprint: str,
        prompt: str,
        negative_prompt: str = "",
        schedule: Mapping[str, Any],
        method: str,
        options: Mapping[str, Any],
        dtype: str,
        precision: Mapping[str, Any] | None,
    ) -> str:
        """SHA-256 of all that an inversion comes from, 64 hexadecimal digits.

        The guidance scale is that of replays; a method fitted for one has it among its options.
        size: (height, width) of the fitted picture. dtype: the network's, as in "float32".
        precision: the whole policy's record.
        """
        parts = {
            "code": self._code,
            "image": image_digest,
            "size": list(size),
            "policy": policy,
            "model": fingerprint,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "schedule": dict(schedule),
            "method": method,
            "options": dict(options),
            "dtype": dtype,
            "precision": precision,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def key_of(self, inversion: Inversion) -> str:
        """The key that an inversion belongs under."""
        return self.key(
            image_digest=inversion.image_digest,
            size=inversion.picture.size,
            policy=inversion.picture.policy,
            fingerprint=inversion.fingerprint,
            prompt=inversion.prompt,
            negative_prompt=inversion.negative_prompt,
            schedule=inversion.schedule,
            method=inversion.method,
            options=inversion.options,
            dtype=str(inversion.report.get("dtype")),
            precision=inversion.report.get("precision"),
        )

    def get(self, key: str) -> Inversion | None:
        """The inversion kept under a key, or None. A damaged entry is dropped, and logged."""
        path = self._path(key)
        try:
            inversion = read_inversion(path)
        except MissingInversionError:
            return None
        except UnreadableInversionError as error:
            logger.warning("a cached inversion is not used: %s", error)
            return None
        except InversionFileError as error:
            self._drop(path, str(error))
            return None
        if self.key_of(inversion) != key:
            self._drop(path, "its content belongs under another key")
            return None
        with suppress(OSError):  # evicted meanwhile, or a folder that can't be written
            os.utime(path)
        return inversion

    def put(self, inversion: Inversion) -> str | None:
        """Keep an inversion, then make room. Returns its key, or None where it is not kept.

        What can't be kept is logged, never raised: the inversion itself is sound.
        """
        key = self.key_of(inversion)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_inversion(inversion, self._path(key))
            size = self._path(key).stat().st_size
        except (OSError, OutputError) as error:  # or another process has removed it already
            logger.warning("the inversion of %r is not cached: %s", inversion.prompt, error)
            return None
        if size > self.max_bytes:
            logger.warning(
                "the inversion of %r takes %d bytes and is not cached; the limit is %d",
                inversion.prompt,
                size,
                self.max_bytes,
            )
            self._unlink(self._path(key), size, Removed())
            return None
        self.gc()
        return key

    def list(self) -> list[CacheEntry]:
        """All sound entries, the most recently used first."""
        found = []
        for path, status in self._files():
            try:
                document = read_document(path)
            except MissingInversionError:  # removed by another process
                continue
            except UnreadableInversionError as error:
                logger.warning("a cached inversion is not listed: %s", error)
                continue
            except InversionFileError as error:
                self._drop(path, str(error))
                continue
            names = ("prompt", "method", "model", "num_inference_steps")
            found.append(
                CacheEntry(
                    path.stem,
                    path,
                    status.st_size,
                    status.st_mtime,
                    **{name: document[name] for name in names},
                )
            )
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def gc(self, max_bytes: int | None = None) -> Removed:
        """Remove the least recently used entries over the limit, and what crashed writers left.

        max_bytes: the limit for this once; the cache's own if None.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        if limit < 0:
            raise ValueError(f"max_bytes={limit}; 0 or more is expected")
        gone = self._remove_stale()
        files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        for path, status in files:
            if total <= limit:
                break
            total -= status.st_size
            gone = self._unlink(path, status.st_size, gone)
        return gone

    def clear(self) -> Removed:
        """Remove every entry."""
        return self.gc(0)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"{'[0-9a-f]' * 64}{_SUFFIX}"):
            with suppress(FileNotFoundError):  # removed by another process
                yield path, path.stat()

    def _remove_stale(self) -> Removed:
        gone = Removed()
        for path in self.folder.glob(".pivotal-*.part"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if time.time() - status.st_mtime > _STALE:
                    gone = self._unlink(path, status.st_size, gone)
        return gone

    def _unlink(self, path: Path, size: int, gone: Removed) -> Removed:
        try:
            path.unlink()
        except FileNotFoundError:
            return gone
        except OSError as error:
            logger.warning("%s can't be removed from the cache: %s", path.name, error)
            return gone
        return Removed(gone.entries + 1, gone.bytes + size)

    def _drop(self, path: Path, reason: str) -> None:
        logger.warning("a cached inversion is dropped: %s", reason)
        self._unlink(path, 0, Removed())


def default_cache_folder() -> Path:
    """PIVOTAL_CACHE, or `pivotal/inversions` in XDG_CACHE_HOME, or in ~/.cache. Read when called.

    As the XDG specification says, a relative XDG_CACHE_HOME is ignored.
    """
    if own := os.environ.get("PIVOTAL_CACHE"):
        return Path(own).expanduser()
    return user_cache() / "inversions"


def user_cache() -> Path:
    """`pivotal` in XDG_CACHE_HOME, or in ~/.cache. Read when called."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():
        home = Path("~/.cache").expanduser()
    return home / "pivotal"
