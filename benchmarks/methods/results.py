"""The rows of methods.jsonl: which are there, and a trial's groups of scenes put together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from methods.measuring import means
from pivotal.inversion.registry import METHODS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu" / "methods.jsonl"
_KEY = (
    "study", "label", "method", "scale", "options", "first", "count", "steps", "edits",
    "fingerprint",
)  # fmt: skip
_TRIAL = tuple(name for name in _KEY if name not in ("first", "count"))
_COSTS = ("rows_invert", "rows_backward", "rows_replay", "seconds_invert", "seconds_replay")


def key_of(row: dict[str, Any]) -> str:
    """Names a trial, its scenes and edits, and the weights."""
    return _name(_KEY, row)


def trial_of(row: dict[str, Any]) -> str:
    """Names a trial with its options, its edits, and the weights, whatever the scenes."""
    return _name(_TRIAL, row)


def _name(fields: Sequence[str], row: dict[str, Any]) -> str:
    """Options at their defaults say nothing: a row is its trial's still when a method gets another
    option, which leaves it as it was.
    """
    named = {name: row.get(name) for name in fields}
    options, method = row.get("options"), METHODS.get(row.get("method", ""))
    if options and method is not None:
        defaults = asdict(method.options())
        named["options"] = {
            name: value
            for name, value in options.items()
            if name not in defaults or value != defaults[name]
        }
    return json.dumps(list(named.values()), sort_keys=True)


def rows_of(path: Path, fingerprint: str | None = None) -> list[dict[str, Any]]:
    """A file's rows in its order, of some weights alone; the last one of equal keys. Rows that
    failed are left out: they are measured again.
    """
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = [
        row
        for row in rows
        if "error" not in row and (fingerprint is None or row["fingerprint"] == fingerprint)
    ]
    return list({key_of(row): row for row in chosen}.values())


def joined(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one trial as one: means over its scenes, costs by how many scenes each row has.

    Rows of other options, edits, steps or weights are another trial's, whatever their label. A
    trial that failed on some scenes is that failure.
    """
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        trials.setdefault(trial_of(row), []).append(row)
    return [_one(parts) for parts in trials.values()]


def _one(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    failed = next((row for row in parts if "error" in row), None)
    if failed is not None:
        return failed
    # Groups may overlap where they were of another size.
    scenes = list({scene["case"]: scene for row in parts for scene in row["each"]}.values())
    costs = {name: _cost(parts, name) for name in _COSTS}
    return {**parts[0], **means(scenes), **costs, "scenes": len(scenes), "each": scenes}


def _cost(parts: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean over scenes; None where a row has none."""
    values = [row[name] for row in parts]
    if any(value is None for value in values):
        return None
    scenes: int = sum(row["count"] for row in parts)
    whole = math.fsum(row["count"] * row[name] for row in parts)
    return whole / scenes
