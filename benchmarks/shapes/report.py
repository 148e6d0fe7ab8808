"""An evaluation's figures: as a record, a table, a JSON line and contact sheets."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from rich.console import Console
from rich.table import Table

from pivotal.bench.shapes.palette import is_held_out
from shapes.cases import PromptCase
from shapes.judge import DILATION, OUTSIDE, PLACE, PromptVerdict

if TYPE_CHECKING:
    from shapes.evaluate import SceneResult

RESULTS = Path(__file__).resolve().parents[1] / "results"
CONDITIONS = (
    "one_object", "new_attribute", "other_attribute", "background", "place", "outside",
)  # fmt: skip


def record_of(
    settings: dict[str, Any],
    scenes: Sequence[SceneResult],
    prompts: Sequence[tuple[PromptCase, PromptVerdict]],
) -> dict[str, Any]:
    """Everything measured, with where and how; plain JSON types."""
    return {
        "suite": "shapes",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "python -m " + " ".join(["shapes.evaluate", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"cpu": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "settings": settings,
        "judged_by": {"place_px": PLACE, "dilation_px": DILATION, "outside_db": OUTSIDE},
        "figures": _figures(scenes, prompts),
        "scenes": [scene.record() for scene in scenes],
        "prompts_missed": [
            {"prompt": case.prompt, "seen": verdict.seen}
            for case, verdict in prompts
            if not verdict.success
        ],
    }


def _figures(
    scenes: Sequence[SceneResult], prompts: Sequence[tuple[PromptCase, PromptVerdict]]
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if scenes:
        figures["vae_db"] = _mean([scene.vae for scene in scenes])
        figures["null_text_db"] = _mean([scene.null_text for scene in scenes])
        figures["ddim_at_1_db"] = _mean([scene.ddim_at_1 for scene in scenes])
        figures["ddim_at_guidance_db"] = _mean([scene.ddim_at_guidance for scene in scenes])
    for kind in ("colour", "shape"):
        verdicts = [scene.edited for scene in scenes if scene.case.kind == kind]
        if not verdicts:
            continue
        figures[f"{kind}_swap"] = {
            "scenes": len(verdicts),
            "success": _mean([verdict.success for verdict in verdicts]),
            "success_but_for_place": _mean([verdict.success_but_for_place for verdict in verdicts]),
            **{name: _mean([getattr(v, name) for v in verdicts]) for name in CONDITIONS},
            "outside_db": _mean([verdict.outside_db for verdict in verdicts]),
            **{
                f"{name}_success": _mean(
                    [getattr(scene, name).success for scene in scenes if scene.case.kind == kind]
                )
                for name in ("fitted_throughout", "unedited")
            },
        }
    if prompts:
        unseen = [v.success for c, v in prompts if is_held_out(c.shape, c.colour, c.background)]
        figures["text_to_image"] = {
            "prompts": len(prompts),
            "success": _mean([verdict.success for _, verdict in prompts]),
            "shape": _mean([verdict.shape for _, verdict in prompts]),
            "colour": _mean([verdict.colour for _, verdict in prompts]),
            "background": _mean([verdict.background for _, verdict in prompts]),
            "held_out": len(unseen),
            "held_out_success": _mean(unseen) if unseen else None,
        }
    return figures


def print_report(record: dict[str, Any], console: Console) -> None:
    """The figures as a table."""
    table = Table("figure", "value", title="shapes")
    for name, value in record["figures"].items():
        if isinstance(value, dict):
            for part, inner in value.items():
                table.add_row(f"{name}: {part}", _shown(inner))
        else:
            table.add_row(name, _shown(value))
    console.print(table)
    console.print(f"{record['seconds']:.0f} s")


def write_record(record: dict[str, Any]) -> None:
    """Append one JSON line to the results of this device."""
    path = RESULTS / "cpu" / "shapes.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def save_sheets(
    folder: Path, scenes: Sequence[SceneResult], images: Sequence[NDArray[np.uint8]]
) -> None:
    """Scenes as columns of five pictures, sixteen a sheet; samples twenty a row."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(scenes), 16):
        columns = [np.concatenate(list(s.pictures), axis=0) for s in scenes[first : first + 16]]
        save_sheet(np.concatenate(columns, axis=1), folder / f"scenes{first:03d}.png")
    for first in range(0, len(images), 100):
        rows = [images[i : i + 20] for i in range(first, min(first + 100, len(images)), 20)]
        whole = [np.concatenate(list(row), axis=1) for row in rows if len(row) == 20]
        if whole:
            save_sheet(np.concatenate(whole, axis=0), folder / f"samples{first:03d}.png")


def save_sheet(pixels: NDArray[np.uint8], path: Path) -> None:
    sheet = Pictures.fromarray(pixels)
    sheet.resize((sheet.width * 2, sheet.height * 2), Pictures.Resampling.NEAREST).save(path)


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip()
