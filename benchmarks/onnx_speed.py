"""Seconds per image of the UNet eager, compiled, in ONNX Runtime and TensorRT, in one run.

    pivotal export onnx --model shapes -o out/shapes-onnx
    OMP_NUM_THREADS=1 python benchmarks/onnx_speed.py --exported out/shapes-onnx --compiled

On a GPU with TensorRT, 50 guided steps (`generate`) beside compiled torch's are

    pivotal export tensorrt --model MODEL --dtype float16 -o out/engines
    python benchmarks/onnx_speed.py --model MODEL --device cuda --dtype float16 --steps 50 \\
        --engines out/engines --compiled

Each round generates, inverts and edits once with every backend, one after another, so that what
else the machine does meets all alike. Figures are medians, by the clock and of CPU time; results
that differ from eager's are not timed but refused. What can't run here is in the row too, with the
reason. A row is added to benchmarks/results/<device>/onnx.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
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
from pivotal.errors import BackendError
from pivotal.inversion_file import Inversion
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.compiled_denoiser import CompiledDenoiser
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.torch_denoiser import TorchDenoiser

SOURCE, TARGET = "a red star on a gray background", "a blue star on a gray background"
Samples = dict[str, dict[str, list[float]]]
"""Seconds by what was done and by backend, a round each."""
TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}
"""Of the largest latent, after all steps."""


def engines(arguments: argparse.Namespace) -> tuple[dict[str, Engine], dict[str, str]]:
    """By backend; and why others are not there."""
    load = partial(Engine.load, arguments.model, device=arguments.device, dtype=arguments.dtype)
    made, missing = {"eager": load()}, {}
    asked = {
        "onnx": (arguments.exported, "--exported"),
        "tensorrt": (arguments.engines, "--engines"),
    }
    for backend, (folder, option) in asked.items():
        try:
            if folder is None:
                raise BackendError(f"{option} DIR is needed, from `pivotal export {backend}`")
            made[backend] = load(backend=backend, exported=folder)
        except BackendError as error:
            missing[backend] = str(error)
    if arguments.compiled:
        model = made["eager"].model
        eager = TorchDenoiser(model.unet, model.levels.config.prediction_type)
        options = CompileOptions(Buckets((1, 2, 4)))  # what is timed asks for no others
        made["compiled"] = Engine(model, CompiledDenoiser(eager, options))
    else:
        missing["compiled"] = "--compiled is needed: compiling takes minutes"
    return made, missing


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


def medians(samples: Samples) -> dict[str, dict[str, float]]:
    return {
        name: {side: statistics.median(taken) for side, taken in each.items()}
        for name, each in samples.items()
    }


def ratios(samples: Samples) -> dict[str, dict[str, float]]:
    """How many times as fast as eager: the median over the rounds, each against its own eager."""
    return {
        name: {
            side: statistics.median(
                eager / own for eager, own in zip(each["eager"], taken, strict=True)
            )
            for side, taken in each.items()
        }
        for name, each in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--exported", type=Path, help="an ONNX export")
    parser.add_argument("--engines", type=Path, help="TensorRT engines")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="the compiled UNet too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    stopwatch = Stopwatch(device)
    sides, missing = engines(arguments)
    picture = sides["eager"].generate(SOURCE, num_inference_steps=10, seed=2).images[0]
    samples: Samples = {}
    cpu: Samples = {}
    errors: dict[str, dict[str, float]] = {}
    for name, work in works(arguments.steps, picture).items():
        results = {side: work(engine) for side, engine in sides.items()}  # first calls, untimed
        eager = results["eager"]
        errors[name] = {
            side: float((found - eager).abs().max() / eager.abs().max())
            for side, found in results.items()
        }
        if not max(errors[name].values()) <= TOLERANCE[arguments.dtype]:
            raise SystemExit(f"{name} differs between backends: {errors[name]}")
        samples[name] = {side: [] for side in sides}
        cpu[name] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, engine in sides.items():
                started = time.process_time()
                samples[name][side].append(stopwatch.seconds(partial(work, engine)))
                cpu[name][side].append(time.process_time() - started)
    row = {
        "benchmark": "onnx_speed",
        "settings": {
            "model": arguments.model,
            "dtype": arguments.dtype,
            "steps": arguments.steps,
            "shared_machine": True,
        },
        "environment": environment(device, ["python", *sys.argv]),
        "seconds": medians(samples),
        "cpu_seconds": medians(cpu),
        "times_eager": ratios(samples),
        "cpu_times_eager": ratios(cpu),
        "samples": samples,
        "cpu_samples": cpu,
        "largest_difference": errors,
        "not_measured": missing,
    }
    append(Path(__file__).parent / "results" / device.type / "onnx.jsonl", row)
    for name in ("seconds", "cpu_seconds", "times_eager", "cpu_times_eager", "not_measured"):
        print(name, row[name])


if __name__ == "__main__":
    main()
