"""Where null-text inversion's time goes, and what each way to make a gradient cheaper gives.

    python benchmarks/null_text_limit.py [--steps 3] [--rounds 15]

First, both ours and the plain transcription of the paper fit one drawn scene, ten Adam steps at
each timestep: CPU seconds in the network's forward passes, in its backward passes, and in all else.
No arrangement of the same passes is faster than they are, which bounds what is left to gain.
Second, CPU milliseconds of one null-embedding gradient, in turns with each way to make it cheaper,
and the share of a forward pass that comes before the first cross-attention: all that an inner step
could take from the one before. Appends a JSON line to benchmarks/results/<device>/
null_text_limit.jsonl and prints it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import null_text_speed as speed  # noqa: E402
from baselines.attention import explicit_copy  # noqa: E402
from pivotal.bench.environment import environment  # noqa: E402
from pivotal.bench.rows import append  # noqa: E402
from pivotal.driver import drive  # noqa: E402
from pivotal.engine import Engine  # noqa: E402
from pivotal.inversion import null_text  # noqa: E402
from pivotal.query import Denoise, NoiseGradient  # noqa: E402
from pivotal.runtime.torch_denoiser import TorchDenoiser  # noqa: E402

Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    engine = Engine.load(given.model)
    scenes = speed.Scenes.drawn(engine, 1)
    row = {
        "benchmark": "null_text_limit",
        "model": given.model,
        "threads": torch.get_num_threads(),
        "steps": given.steps,
        "cpu_seconds": {
            "ours": passes_of(engine.model.unet.unet, ours(engine, scenes, given.steps)),
            "plain": plain_passes(engine, scenes, given.steps),
        },
        **ways(engine, scenes, given),
        "environment": environment(engine.model.device, ["python", *sys.argv]),
    }
    ours_spent, plain_spent = row["cpu_seconds"]["ours"], row["cpu_seconds"]["plain"]
    networks = ours_spent["forward"] + ours_spent["backward"]
    row["speedup"] = sum(plain_spent.values()) / sum(ours_spent.values())
    row["speedup_if_all_but_the_network_were_free"] = sum(plain_spent.values()) / networks
    append(ROOT / "results" / engine.model.device.type / "null_text_limit.jsonl", row)
    print(json.dumps(row))


def ours(engine: Engine, scenes: speed.Scenes, steps: int) -> Way:
    options = null_text.NullTextOptions(
        guidance_scale=speed.GUIDANCE, early_stop=-1.0, early_stop_growth=0.0
    )
    schedule = engine.model.levels.schedule(steps)
    batch = (scenes.latents, scenes.conditioning, scenes.null)
    return lambda: drive(null_text.invert(schedule, *batch, options), engine.denoiser)


def plain_passes(engine: Engine, scenes: speed.Scenes, steps: int) -> dict[str, float]:
    given = argparse.Namespace(steps=steps, images=1, inner_steps=10, no_early_stop=True)
    unet = explicit_copy(engine.model.unet.unet)
    return passes_of(unet, speed.plain(engine, scenes, given, unet))


def passes_of(network: nn.Module, run: Way) -> dict[str, float]:
    """CPU seconds of a run in the network's forward passes, in autograd, and in all else."""
    run()  # warm-up
    spent = {"forward": 0.0, "backward": 0.0}
    with (
        timed(network, "forward", spent),
        timed(torch.autograd, "grad", spent, "backward"),  # ours
        timed(torch.autograd, "backward", spent),  # the plain one's `loss.backward()`
    ):
        start = time.process_time()
        run()
        whole = time.process_time() - start
    return {**spent, "rest": whole - sum(spent.values())}


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], key: str | None = None) -> Iterator[None]:
    """While inside, the CPU seconds of `owner.name` are added to `spent`."""
    kept = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return kept(*arguments, **options)
        finally:
            spent[key or name] += time.process_time() - start

    setattr(owner, name, run)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def ways(engine: Engine, scenes: speed.Scenes, given: argparse.Namespace) -> dict[str, Any]:
    """A gradient of one row, and of the next timestep's row beside it, in turns."""
    model = engine.model
    high, next_level = model.levels.schedule(50).levels[25:27]
    asked = Denoise.at(scenes.latents, high, scenes.null)
    beside = Denoise.at(scenes.latents, next_level, scenes.conditioning)
    query = gradient_of(asked)
    two = gradient_of(type(asked).cat([asked, beside]))

    channels_last = on_copy(engine)
    channels_last.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with_weights = on_copy(engine)
    with_weights.unet.requires_grad_(True)
    plain = engine.denoiser

    def unfused() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return plain.answer(query)

    runs: dict[str, Way] = {
        "as it is": lambda: plain.answer(query),
        "channels last": lambda: channels_last.answer(query),
        "attention not fused": unfused,
        "weights not frozen": lambda: with_weights.answer(query),
        "a forward pass": lambda: plain.answer(asked),
        "with the next timestep's row": lambda: plain.answer(two),
        "the next timestep's pass": lambda: plain.answer(beside),
    }
    samples: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(given.rounds + 1):
            for name, run in runs.items():
                start = time.process_time()
                run()
                if turn:
                    samples[name].append(1000 * (time.process_time() - start))
        before = [before_attention(engine, asked) for _ in range(given.rounds)]
    own = samples["as it is"]
    return {
        "milliseconds": {name: statistics.median(each) for name, each in samples.items()},
        "over_as_it_is": {
            name: statistics.median(a / b for a, b in zip(each, own, strict=True))
            for name, each in samples.items()
        },
        "forward_before_the_first_cross_attention": statistics.median(before),
        "samples": samples,
    }


def gradient_of(asked: Denoise) -> NoiseGradient:
    return NoiseGradient(
        asked.latents, asked.timesteps, asked.alpha_bars, asked.conditioning,
        scale=torch.ones(asked.rows), offset=asked.latents,
    )  # fmt: skip


def on_copy(engine: Engine) -> TorchDenoiser:
    """A denoiser on a copy of the network, to be changed."""
    return TorchDenoiser(
        copy.deepcopy(engine.model.unet), engine.model.levels.config.prediction_type
    )


def before_attention(engine: Engine, asked: Denoise) -> float:
    """The share of a forward pass that is the same whatever the embedding is."""
    unet = engine.model.unet
    first = unet.unet.get_submodule(unet.cross_layers[0].name)
    reached: list[float] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        reached.append(time.process_time())

    handle = first.register_forward_pre_hook(note)
    start = time.process_time()
    engine.denoiser.answer(asked)
    end = time.process_time()
    handle.remove()
    return (reached[0] - start) / (end - start)


if __name__ == "__main__":
    main()
