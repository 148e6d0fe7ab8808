"""Seconds per image of the eager, ONNX Runtime and compiled UNet, in one run, interleaved.

    pivotal export onnx --model shapes -o out/shapes-onnx
    OMP_NUM_THREADS=1 python benchmarks/onnx_speed.py --exported out/shapes-onnx

Each round generates, inverts and edits once with every backend, one after another, so that what
else the machine does meets all alike. Figures are medians; results that differ from eager's are not
timed but refused. A row is added to benchmarks/results/<device>/onnx.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pivotal.bench.environment import environment
from pivotal.bench.rows import append
from pivotal.bench.timing import Stopwatch
from pivotal.engine import Engine
from pivotal.inversion_file import Inversion
from pivotal.runtime.compiled_unet import CompiledUNet, CompileOptions
from pivotal.runtime.torch_denoiser import TorchDenoiser

SOURCE, TARGET = "a red star on a gray background", "a blue star on a gray background"
TOLERANCE = 1e-3  # of the largest latent, after all steps


def engines(arguments: argparse.Namespace) -> dict[str, Engine]:
    made = {
        "eager": Engine.load(arguments.model),
        "onnx": Engine.load(arguments.model, backend="onnx", exported=arguments.exported),
    }
    if arguments.compiled:
        model = made["eager"].model
        compiled = TorchDenoiser(
            CompiledUNet(model.unet, CompileOptions()), model.levels.config.prediction_type
        )
        made["compiled"] = Engine(model, compiled)
    return made


def works(steps: int, picture: Any) -> dict[str, Callable[[Engine], Tensor]]:
    """What is timed, each ending in latents [R, C, h, w]."""
    kept: dict[int, Inversion] = {}

    def generate(engine: Engine) -> Tensor:
        images = engine.generate(SOURCE, num_inference_steps=steps, seed=2, output_type="pt").images
        assert isinstance(images, Tensor)
        return images

    def invert(engine: Engine) -> Tensor:
        found = engine.invert(picture, SOURCE, method="direct", num_inference_steps=steps)
        kept[id(engine)] = found
        return found.inverted.noise

    def edit(engine: Engine) -> Tensor:
        return engine.edit(kept[id(engine)], TARGET, blend="auto").latents

    return {"generate": generate, "invert": invert, "edit": edit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--exported", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="the compiled UNet too")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    stopwatch = Stopwatch(device)
    sides = engines(arguments)
    picture = sides["eager"].generate(SOURCE, num_inference_steps=10, seed=2).images[0]
    samples: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, dict[str, float]] = {}
    for name, work in works(arguments.steps, picture).items():
        results = {side: work(engine) for side, engine in sides.items()}  # first calls, untimed
        eager = results["eager"]
        errors[name] = {
            side: float((found - eager).abs().max() / eager.abs().max())
            for side, found in results.items()
        }
        if max(errors[name].values()) > TOLERANCE:
            raise SystemExit(f"{name} differs between backends: {errors[name]}")
        samples[name] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, engine in sides.items():
                taken = stopwatch.seconds(partial(work, engine))
                samples[name][side].append(taken)
    medians = {
        name: {side: statistics.median(taken) for side, taken in each.items()}
        for name, each in samples.items()
    }
    row = {
        "benchmark": "onnx_speed",
        "settings": {"model": arguments.model, "steps": arguments.steps, "shared_machine": True},
        "environment": environment(device, ["python", *sys.argv]),
        "seconds": medians,
        "times_eager": {
            name: {side: each["eager"] / taken for side, taken in each.items()}
            for name, each in medians.items()
        },
        "samples": samples,
        "largest_difference": errors,
    }
    append(Path(__file__).parent / "results" / device.type / "onnx.jsonl", row)
    print(medians, row["times_eager"], errors, sep="\n")


if __name__ == "__main__":
    main()
