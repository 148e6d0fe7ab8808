"""The bundled model and the engine, measured: `python -m shapes.evaluate` (PYTHONPATH=benchmarks).

Held-out scenes are inverted three ways, sampled back and edited; prompts are sampled. The figures
are printed, and appended as one JSON line to benchmarks/results/<device>/shapes.jsonl (runs on the
tuning scenes are only printed).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from pivotal.bench.shapes.scenes import draw
from pivotal.editing.edit import Edit
from pivotal.engine import Engine
from shapes.cases import EVALUATION_SEED, TUNING_SEED, EditCase, edit_cases, prompt_cases
from shapes.images import psnr
from shapes.judge import EditVerdict, judge_edit, judge_prompt
from shapes.report import print_report, record_of, save_sheets, write_record

GUIDANCE = 7.5

# Chosen on the tuning scenes (`shapes.tune`): a new colour keeps all of the source's attention, a
# new shape can't keep its self-attention. A threshold under the paper's 0.3 leaves room for what
# reaches beyond the source's object. Null-text's fitted embedding guides away from the source's
# prompt, which at 7.5 exaggerates what is new (squares with horns, orange turned red): targets take
# it only while the layout forms, then the empty prompt.
EDITS: dict[str, dict[str, Any]] = {
    "colour": {
        "cross_replace_steps": 0.8,
        "self_replace_steps": 1.0,
        "blend_threshold": 0.2,
        "null_text_steps": 0.2,
    },
    "shape": {
        "cross_replace_steps": 0.5,
        "self_replace_steps": 0.0,
        "blend_threshold": 0.25,
        "null_text_steps": 0.2,
    },
}


@dataclass(frozen=True)
class Settings:
    """What is measured, and with which edit."""

    model: str = "shapes"
    scenes: int = 64
    prompts: int = 200
    steps: int = 50
    seed: int = EVALUATION_SEED
    guidance_scale: float = GUIDANCE
    edits: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(EDITS))


@dataclass(frozen=True)
class SceneResult:
    """One held-out scene: decibels against the drawn picture, verdicts, and the pictures."""

    case: EditCase
    vae: float
    null_text: float
    ddim_at_1: float
    ddim_at_guidance: float
    edited: EditVerdict
    fitted_throughout: EditVerdict  # the same edit, the fitted null embedding at every step
    unedited: EditVerdict
    pictures: NDArray[np.uint8]  # [5, 64, 64, 3]: source, VAE, null-text, DDIM at guidance, edit
    seconds: dict[str, float]

    def record(self) -> dict[str, Any]:
        return {
            "prompt": self.case.prompt,
            "target": self.case.target,
            "kind": self.case.kind,
            "vae_db": self.vae,
            "null_text_db": self.null_text,
            "ddim_at_1_db": self.ddim_at_1,
            "ddim_at_guidance_db": self.ddim_at_guidance,
            "edited": self.edited.record(),
            "fitted_throughout": self.fitted_throughout.record(),
            "unedited": self.unedited.record(),
            "seconds": self.seconds,
        }


_engines: dict[str, Engine] = {}


def engine_of(model: str) -> Engine:
    """One engine a process, loaded at its first case; a single thread, processes fill the cores."""
    if model not in _engines:
        torch.set_num_threads(1)
        _engines[model] = Engine.load(model, device="cpu")
    return _engines[model]


def measure_scene(case: EditCase, settings: Settings) -> SceneResult:
    """Invert, sample back and edit one drawn scene."""
    engine = engine_of(settings.model)
    source = draw(case.scene)[0]
    start = time.perf_counter()
    common: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
    }
    ddim = engine.invert(source, case.prompt, method="ddim", **common)
    at_1 = engine.reconstruct(ddim, guidance_scale=1.0)
    drifted = engine.reconstruct(ddim, guidance_scale=settings.guidance_scale)
    middle = time.perf_counter()
    null_text = engine.invert(source, case.prompt, method="null-text", **common)
    inverted = time.perf_counter()
    wish = Edit(case.target, blend=case.words, **settings.edits[case.kind])
    both = engine.edit(null_text, [wish, replace(wish, null_text_steps=1.0)])
    # The edit's source row is the inversion replayed without an edit.
    fitted, edited = np.asarray(both.reconstruction), np.asarray(both.pictures[0])
    done = time.perf_counter()
    pictures = np.stack([source, at_1.round_trip, fitted, drifted.picture, edited])
    decibels = [float(psnr(source[None], picture[None])[0]) for picture in pictures[1:4]]
    return SceneResult(
        case=case,
        vae=decibels[0],
        null_text=decibels[1],
        ddim_at_1=float(psnr(source[None], np.asarray(at_1.picture)[None])[0]),
        ddim_at_guidance=decibels[2],
        edited=judge_edit(case, edited),
        fitted_throughout=judge_edit(case, np.asarray(both.pictures[1])),
        unedited=judge_edit(case, fitted),
        pictures=pictures,
        seconds={"ddim": middle - start, "null_text": inverted - middle, "edit": done - inverted},
    )


def sample_prompts(
    prompts: list[str], first: int, settings: Settings
) -> tuple[int, NDArray[np.uint8]]:
    """Text to image for a run of prompts, uint8 [B, 64, 64, 3]; prompt i has a seed of its own."""
    engine = engine_of(settings.model)
    generated = engine.generate(
        prompts,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed + first,
    )
    return first, np.stack(generated.pictures)


def main() -> None:
    settings, processes, folder, note, minutes = _parse()
    console = Console()
    start = time.perf_counter()
    asked = prompt_cases(settings.prompts, settings.seed)
    batches = [(asked[i : i + 10], i) for i in range(0, len(asked), 10)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        sampled = [
            pool.submit(sample_prompts, [case.prompt for case in batch], first, settings)
            for batch, first in batches
        ]
        measured = [
            pool.submit(measure_scene, case, settings)
            for case in edit_cases(settings.scenes, settings.seed)
        ]
        generated = [task.result() for task in track(sampled, "prompts", console=console)]
        left = None if minutes is None else max(60 * minutes - (time.perf_counter() - start), 0)
        done, late = wait(measured, timeout=left)
        pool.shutdown(wait=not late, cancel_futures=True)
        scenes = [task.result() for task in measured if task in done]
    images = [picture for _, pictures in generated for picture in pictures]
    prompts = [
        (case, judge_prompt(case, picture)) for case, picture in zip(asked, images, strict=True)
    ]
    record = record_of(asdict(settings), scenes, prompts)
    record["seconds"] = time.perf_counter() - start
    record["note"] = note
    print_report(record, console)
    if settings.seed == EVALUATION_SEED:
        write_record(record)
    if folder is not None:
        save_sheets(folder, scenes, images)


def _parse() -> tuple[Settings, int, Path | None, str, float | None]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="of all but DDIM at 1")
    parser.add_argument("--edits", help="settings by kind as JSON, in place of the chosen ones")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tuning", action="store_true", help="other scenes, to tune on")
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets")
    parser.add_argument("--minutes", type=float, help="report the scenes done by then")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    settings = Settings(
        model=given.model,
        scenes=given.scenes,
        prompts=given.prompts,
        steps=given.steps,
        seed=TUNING_SEED if given.tuning else EVALUATION_SEED,
        guidance_scale=given.guidance,
        edits=EDITS if given.edits is None else json.loads(given.edits),
    )
    return settings, given.processes, given.sheets, given.note, given.minutes


if __name__ == "__main__":
    main()
