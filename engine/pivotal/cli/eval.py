"""`pivotal eval`: how good methods' edits are, on drawn scenes or on a folder of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_methods
from .options import Force, GuidanceScale, ModelOptions, Steps
from .outputs import check_outputs, staged
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.bench.evaluation import Score

_LPIPS = (
    "its published weights are pickles, which pivotal never loads; --lpips takes them as "
    "safetensors"
)


def evaluate_edits(
    model: ModelOptions,
    terminal: Terminal,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="Data in PIE-Bench's format (mapping_file.json, annotation_images). Default: "
            "drawn scenes, for the bundled model.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="See `pivotal methods`; may repeat. Default: the six most used.",
            autocompletion=complete_methods,
        ),
    ] = None,
    scenes: Annotated[int, typer.Option(help="Drawn scenes of each kind of edit.")] = 4,
    limit: Annotated[int | None, typer.Option(help="Tasks of a folder, at most.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of the drawn scenes; 77 is for tuning, other seeds for judging.")
    ] = 2024,
    steps: Steps = 20,
    guidance_scale: GuidanceScale = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A CLIP model, as transformers keeps it, to score with. Default: OpenAI's "
            "ViT-L/14, if the hub's cache has it.",
        ),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="LPIPS' AlexNet weights as safetensors, under the names of the authors' package.",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What is judged is appended there at once, as JSON lines; what this code judged "
            "there already is not judged again.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Also the answer, as JSON."),
    ] = None,
    force: Force = False,
) -> None:
    """Judge methods by their edits: success, background, source; one row a method.

    Kinds of edit of drawn scenes: change object, colour, size, background; add, delete; re-weight;
    one of two. Out of their reach: material, pose, style. Equal runs print equal JSON.

    Example: `pivotal eval --scenes 1 --method ddim`
    """
    from pivotal.bench.errors import require_extra
    from pivotal.bench.evaluation import METHODS, evaluate
    from pivotal.bench.judged import JudgedFile
    from pivotal.inversion.registry import method_named
    from pivotal.query import Progress

    require_extra("skimage", "scipy", what="judging pictures")
    for name, value in (("scenes", scenes), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise ValueError(f"--{name} {value}; at least 1 is expected")
    chosen = [method_named(each).name for each in method or METHODS]
    if output is not None:
        check_outputs([output], force=force)
    scores, absent = _scores(clip, lpips)
    engine = model.load()
    size = engine.model.default_size
    if folder is None:
        from pivotal.bench.shapes.tasks import tasks

        if size != (64, 64):
            raise ValueError(
                f"drawn scenes are 64x64 and {engine.model.name} is for {size[0]}x{size[1]}; give "
                "a folder in PIE-Bench's format"
            )
        found = tasks(scenes, seed)
    else:
        from pivotal.bench import pie_bench

        found = pie_bench.tasks(folder, size, limit)
    scale = engine.model.family.guidance_scale if guidance_scale is None else guidance_scale
    given = {
        "fingerprint": engine.model.fingerprint,
        "model": {name: str(value) for name, value in asdict(model).items()},
        "clip": str(clip),
        "lpips": str(lpips),
        "scores": sorted(scores),
    }
    with terminal.progress() as bar:
        rows = evaluate(
            engine,
            found,
            chosen,
            steps=steps,
            guidance_scale=scale,
            scores=scores,
            kept=JudgedFile(keep, given),
            listener=lambda what, done, most: bar(Progress(what, done, most)),
        )
    record = {
        "data": "shapes" if folder is None else folder.name,
        "seed": seed if folder is None else None,
        "tasks": len(found),
        "model": engine.model.name,
        "fingerprint": engine.model.fingerprint,
        "steps": steps,
        "guidance_scale": scale,
        "rows": rows,
        "not_measured": absent,
    }
    if output is not None:
        with staged([output], terminal.interruption, force=force) as places:
            places[output].write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    terminal.answer(record, _table(rows), *(_kinds(row) for row in rows))
    if output is not None:
        terminal.saved([output])


def _scores(clip: Path | None, lpips: Path | None) -> tuple[dict[str, Score], dict[str, str]]:
    """Those whose weights are at hand, by figure; and why the others are not measured."""
    from pivotal.bench.clip import MODEL, cached_clip, clip_score

    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}
    folder = clip or cached_clip()
    if folder is None:
        absent["clip_score"] = (
            f"the weights of {MODEL} are not on this machine; --clip takes others"
        )
    else:
        scored = clip_score(folder)
        scores["clip_score"] = lambda source, picture, where, text: scored(picture, text)
    if lpips is None:
        absent["lpips"] = _LPIPS
    else:
        from pivotal.bench.lpips import lpips as distance_by

        distance = distance_by(lpips)
        scores["lpips"] = lambda source, picture, where, text: distance(source, picture, where)
    return scores, absent


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Column, Table

    scored = [name for name in ("clip_score", "lpips") if any(row[name] for row in rows)]
    headings = (
        "method",
        "success",
        "background",
        "SSIM",
        "source",
        "autoencoder",
        *scored,
        "failed",
    )
    table = Table(*(Column(name, overflow="fold") for name in headings))
    for row in rows:
        table.add_row(
            row["method"],
            _shown(row["success"], 100, " %"),
            _shown(row["background_psnr"], 1, " dB"),
            _shown(row["background_ssim"], 1, ""),
            _shown(row["source_psnr"], 1, " dB"),
            _shown(row["vae_psnr"], 1, " dB"),
            *(_shown(row[name], 1, "") for name in scored),
            str(row["failed"]),
        )
    table.caption = "mean (95 % interval); background: where the picture must stay as it is"
    return table


def _kinds(row: dict[str, Any]) -> str:
    shares = (
        f"{kind} {_shown(found['success'], 100, ' %')}" for kind, found in row["kinds"].items()
    )
    failed = "".join(f"; {task} failed: {error}" for task, error in row["errors"].items())
    return f"{row['method']}: " + ", ".join(shares) + failed


def _shown(figure: dict[str, float] | None, factor: float, unit: str) -> str:
    if figure is None:
        return "-"
    middle, low, high = (factor * figure[name] for name in ("mean", "low", "high"))
    digits = 0 if factor == 100 else 2 if unit == "" else 1
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
