"""What each precision costs in quality, on `shapes`: gradients, noise, and reconstructions.

    python benchmarks/precision.py [--steps 10] [--scenes 2] [--precisions float32,bfloat16,float16]

First, against float64: the error of eps, and the null embedding's gradient at residuals of several
sizes. Then null-text, by Adam and by line search, from the same drawn scenes: decibels of latents
and of pictures. "e4m3-weights" rounds the weights of linear layers as fp8 does, and runs them in
float32: it is what the gate of `runtime/quality_gate.py` lets pass. Appends JSON lines to
benchmarks/results/cpu/precision.jsonl. Seconds are not compared: half precision is not what a CPU
is fast at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pivotal.bench.environment import environment
from pivotal.bench.shapes.scenes import draw
from pivotal.control import NoEdit
from pivotal.driver import drive
from pivotal.engine import Engine
from pivotal.inversion.registry import method_named
from pivotal.query import NoiseGradient
from pivotal.runtime.fp8 import fits
from pivotal.runtime.quality_gate import TIMESTEPS, answers_of

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))


from shapes.cases import edit_cases  # noqa: E402
from shapes.images import psnr, to_images, to_tensor  # noqa: E402

RESIDUALS = (1e-1, 1e-2, 1e-3)  # root mean square, in latents
SCALE = 0.05  # of eps in null-text's residual, about that of 50 steps
METHODS = ("null-text", "null-text-line-search")
SEED = 7000  # scenes that nothing was tuned on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--precisions", default="float32,bfloat16,float16,e4m3-weights")
    given = parser.parse_args()
    common = {
        "benchmark": "precision",
        "model": "shapes",
        "environment": environment(torch.device("cpu"), ["python", *sys.argv]),
    }
    exact = Engine.load(dtype="float64")
    folder = ROOT / "results" / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.precisions.split(","):
        engine = loaded(name)
        rows = [*gradients(engine, exact), *reconstructions(engine, given.scenes, given.steps)]
        with (folder / "precision.jsonl").open("a") as file:
            for row in rows:
                line = json.dumps({**common, "precision": name, **row})
                file.write(line + "\n")
                print(name, json.dumps(row), flush=True)


def loaded(name: str) -> Engine:
    if name != "e4m3-weights":
        return Engine.load(dtype=name)
    engine = Engine.load()
    with torch.no_grad():
        for path, module in engine.model.unet.named_modules():
            if fits(module, path):
                weight: Tensor = module.weight
                scale = weight.abs().amax(dim=1, keepdim=True) / 448  # e4m3's largest number
                weight.copy_((weight / scale).to(torch.float8_e4m3fn).float() * scale)
    return engine


def gradients(engine: Engine, exact: Engine) -> Iterator[dict[str, Any]]:
    """Against float64, of the worst of five noise levels: cosine and relative error."""
    asked = (exact.model.levels, exact.model.text.encode([""]), (4, 16, 16))
    own = answers_of(engine.denoiser, *asked)
    far = answers_of(exact.denoiser, *asked).measured(own)
    yield {"what": "gate", "noise_error": far.noise_error, "cosine": far.gradient_cosine}
    generator = torch.Generator().manual_seed(0)
    rows, timesteps = len(TIMESTEPS), torch.tensor(TIMESTEPS)
    latents, noise = (torch.randn(rows, 4, 16, 16, generator=generator) for _ in range(2))
    alpha_bars = exact.model.levels.alpha_bar(timesteps).double()
    null = exact.model.text.encode([""] * rows)

    def gradient(model: Engine, residual: Tensor) -> Tensor:
        dtype = torch.float64 if model is exact else torch.float32
        query = NoiseGradient(
            latents.to(dtype),
            timesteps,
            alpha_bars,
            null,
            scale=torch.full((rows,), SCALE, dtype=dtype),
            offset=residual.to(dtype),
        )
        return model.denoiser.answer(query).owned().gradient.double().flatten(1)  # type: ignore[union-attr]

    asked_at = NoiseGradient(
        latents.double(), timesteps, alpha_bars, null,
        scale=torch.full((rows,), SCALE, dtype=torch.float64), offset=torch.zeros_like(latents),
    )  # fmt: skip
    eps = exact.denoiser.answer(asked_at).eps
    for size in RESIDUALS:
        offset = size * noise - SCALE * eps
        found, true = gradient(engine, offset), gradient(exact, offset)
        cosine = (found * true).sum(dim=1) / found.norm(dim=1) / true.norm(dim=1)
        error = (found - true).norm(dim=1) / true.norm(dim=1)
        yield {
            "what": "gradient",
            "residual": size,
            "cosine": float(cosine.min()),
            "relative_error": float(error.max()),
        }


def reconstructions(engine: Engine, scenes: int, steps: int) -> Iterator[dict[str, Any]]:
    """Mean decibels over scenes at guidance 7.5, of latents and of the drawn pictures."""
    cases = edit_cases(scenes, SEED)
    pictures = np.stack([draw(case.scene)[0] for case in cases])
    model = engine.model
    with torch.no_grad():
        latents = model.autoencoder.encode(to_tensor(pictures))
        conditioning = model.text.encode([case.prompt for case in cases])
        null = model.text.encode([""] * scenes)
    schedule = model.levels.schedule(steps)
    for name in METHODS:
        method = method_named(name)
        options = method.options_from({"guidance_scale": 7.5})
        inverted = drive(
            method.invert(schedule, latents, conditioning, null, options), engine.denoiser
        )
        back = drive(
            method.replay(schedule, inverted, conditioning, null, 7.5, NoEdit(), options),
            engine.denoiser,
        )
        squares = (back - latents).double().square().mean(dim=(1, 2, 3))
        with torch.no_grad():
            decoded = to_images(model.autoencoder.decode(back.float()))
        yield {
            "what": "reconstruction",
            "method": name,
            "steps": steps,
            "scenes": scenes,
            "latents_db": float((-10 * squares.log10()).mean()),
            "picture_db": float(np.mean(psnr(pictures, decoded))),
            "retried_rows": getattr(engine.denoiser, "retried", 0),
        }


if __name__ == "__main__":
    main()
