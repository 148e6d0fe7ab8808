"""Where results go: chosen and checked before the work, all written together after it.

A file that the user names is never replaced without --force; a name that we choose is a free one.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pivotal.errors import OutputError

from .guard import Interruption


def chosen(named: Path | None, default: str, *, force: bool) -> Path:
    """The path that the user named, or else the default one, numbered until it is free.

    With force a default name is taken as it is.
    """
    if named is not None:
        return named
    return Path(default) if force else free(Path(default))


def free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, .. that does not exist."""
    number, candidate = 1, path
    while candidate.exists() or candidate.is_symlink():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def numbered(path: Path, count: int) -> list[Path]:
    """One path, or path-1, path-2, .. for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def check_outputs(paths: Sequence[Path], *, force: bool) -> None:
    """Raise OutputError, before any work, for paths that can't be written or must not be."""
    from pivotal.images import require_writable

    seen: set[Path] = set()
    for path in paths:
        require_writable(path)
        if path.resolve() in seen:
            raise OutputError(f"two results would be written to {str(path)!r}; name them apart")
        seen.add(path.resolve())
        if not force and (path.exists() or path.is_symlink()):
            raise OutputError(
                f"{str(path)!r} exists; name another file, or give --force to replace it"
            )


def check_folder(folder: Path) -> None:
    """Raise OutputError unless the folder exists or can be made."""
    near = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not near.is_dir():
        raise OutputError(f"can't make the folder {str(folder)!r}: {str(near)!r} is a file")
    if not os.access(near, os.W_OK | os.X_OK):
        raise OutputError(f"can't write into {str(near)!r}: no permission")


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder for results; what was made goes again if they fail. Raises OutputError."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"can't make the folder {str(folder)!r}: {reason}") from error
        yield
    except BaseException:
        for each in absent:
            with suppress(OSError):  # not made, or not empty
                each.rmdir()
        raise


@contextmanager
def staged(paths: Sequence[Path], interruption: Interruption) -> Iterator[dict[Path, Path]]:
    """Where to write each path for now; at the end all are renamed into place, or none is.

    Each folder gets a temporary one inside, on the same file system. Raises OutputError where that
    can't be made, or a result not be moved.
    """
    token = secrets.token_hex(8)
    folders = {path.parent: path.parent / f".pivotal-{token}.part" for path in paths}
    try:
        for folder in folders.values():
            _make(folder)
        places = {path: folders[path.parent] / path.name for path in paths}
        yield places
        interruption.check()
        with interruption.held():
            _move(places)
    finally:
        with interruption.held():
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"can't write into {str(folder.parent)!r}: {reason}") from error


def _move(places: dict[Path, Path]) -> None:
    """Rename all. Where one can't be, those that are new go again."""
    fresh: list[Path] = []
    for path, place in places.items():
        existed = path.exists()
        try:
            place.replace(path)
        except OSError as error:
            for each in fresh:
                with suppress(OSError):
                    each.unlink()
            reason = error.strerror or str(error)
            raise OutputError(f"{str(path)!r} can't be written: {reason}") from error
        if not existed:
            fresh.append(path)
