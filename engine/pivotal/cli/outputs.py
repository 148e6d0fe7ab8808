"""Where results go: chosen and checked before the work, all written together after it.

A file that the user names is never replaced without --force; a name that we choose is a free one.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
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

    check_apart(paths)
    for path in paths:
        require_writable(path)
        if not force and (path.exists() or path.is_symlink()):
            raise OutputError(
                f"{str(path)!r} exists; name another file, or give --force to replace it"
            )
    for folder in {path.parent for path in paths}:
        _try(folder)


def check_apart(paths: Sequence[Path]) -> None:
    """Raise OutputError where two results would have one path. The folders need not exist yet."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise OutputError(f"two results would be written to {str(path)!r}; name them apart")
        seen.add(path.resolve())


def check_folder(folder: Path) -> None:
    """Raise OutputError unless the folder exists or can be made."""
    near = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not near.is_dir():
        raise OutputError(f"can't make the folder {str(folder)!r}: {str(near)!r} is a file")
    if not os.access(near, os.W_OK | os.X_OK):
        raise OutputError(f"can't write into {str(near)!r}: no permission")
    _try(near)


def _try(folder: Path) -> None:
    """Make a folder inside and take it away again: what permissions say is not always so."""
    try:
        Path(tempfile.mkdtemp(prefix=".pivotal-", suffix=".part", dir=folder)).rmdir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"can't write into {str(folder)!r}: {reason}") from error


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
def staged(
    paths: Sequence[Path], interruption: Interruption, *, force: bool
) -> Iterator[dict[Path, Path]]:
    """Where to write each path for now; at the end all are moved into place, or none is.

    Without force a file that appeared since the paths were chosen is left alone, and none is
    moved. Each folder gets a temporary one inside, on the same file system. Raises OutputError
    where that can't be made, or a result not be moved.
    """
    check_apart(paths)
    token = secrets.token_hex(8)
    folders = {path.parent: path.parent / f".pivotal-{token}.part" for path in paths}
    try:
        for folder in folders.values():
            _make(folder)
        places = {path: folders[path.parent] / path.name for path in paths}
        yield places
        interruption.check()
        with interruption.held():
            _move(places, force=force)
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


def _move(places: dict[Path, Path], *, force: bool) -> None:
    """Move all. Where one can't be, new ones go again and replaced ones come back."""
    moved: list[tuple[Path, Path | None]] = []
    for path, place in places.items():
        kept = None
        try:
            if force:
                kept = _keep(path, place.with_name(f".{len(moved)}.old"))
                place.replace(path)
            else:
                _link(place, path)
        except OSError as error:
            for each, old in moved if kept is None else [*moved, (path, kept)]:
                with suppress(OSError):
                    each.unlink() if old is None else old.replace(each)
            if isinstance(error, FileExistsError):
                raise OutputError(
                    f"{str(path)!r} was made by another program meanwhile; nothing is written"
                ) from error
            reason = error.strerror or str(error)
            raise OutputError(f"{str(path)!r} can't be written: {reason}") from error
        moved.append((path, kept))


def _keep(path: Path, aside: Path) -> Path | None:
    """The file that is about to be replaced under a second name, or None where there is none."""
    if not (path.is_file() or path.is_symlink()):
        return None
    try:
        os.link(path, aside, follow_symlinks=False)
    except OSError:  # a file system without hard links
        path.rename(aside)
    return aside


def _link(place: Path, path: Path) -> None:
    """Give a result its name, and never another's: FileExistsError where there is a file."""
    try:
        os.link(place, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        place.replace(path)
