"""Rows of results: JSON lines that grow, whatever interrupts their writer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pivotal.bench.cases import key_of
from pivotal.bench.errors import ResultsError
from pivotal.code_version import whole_code

Row = Mapping[str, Any]
SCHEMA = 1


def append(path: Path, row: Row) -> None:
    """One line, on disk when this returns. A line that a crash tore is closed first, so that it
    spoils no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The harness's rows of a file, or of all files of a folder, oldest first.

    `path@commit` takes that commit's rows alone. Torn lines and other programs' rows are left out.
    Raises ResultsError where there is nothing to read.
    """
    name, at, commit = str(path).rpartition("@")
    if at and not path.exists():
        path = Path(name)
    else:
        commit = ""
    if not path.exists():
        raise ResultsError(f"{str(path)!r} does not exist; name a file or a folder of results")
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    rows = [row for file in files for row in _rows(file)]
    if commit:
        rows = [row for row in rows if str(row["environment"]["commit"]).startswith(commit)]
    if not rows:
        raise ResultsError(f"{str(path)!r} holds no rows of `pivotal bench` that fit {commit!r}")
    return sorted(rows, key=lambda row: str(row["time"]))


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    for line in file.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a crash
        if isinstance(row, dict) and row.get("schema") == SCHEMA and "suite" in row:
            yield row


def latest(rows: Iterable[Row]) -> dict[str, Row]:
    """The last row of each case, by key. A case that has failed since it was timed has failed; one
    that a run left out for want of a device or an option keeps what it had.
    """
    found: dict[str, Row] = {}
    for row in rows:
        key = key_of(row)
        if row["status"] != "not measured" or key not in found:
            found[key] = row
    return found


def timed_keys(path: Path) -> set[str]:
    """The keys of the cases that a file's rows have timed with the code as it is now."""
    if not path.exists():
        return set()
    code = whole_code()
    return {
        key_of(row)
        for row in _rows(path)
        if row["status"] == "timed" and row["environment"]["code"] == code
    }
