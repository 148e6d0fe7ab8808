"""Null-text inversion timed against a plain transcription of the paper, in pairs, in one process.

    python benchmarks/null_text_speed.py [--model shapes] [--steps 50] [--pairs 5] [--profile]
        [--images 1]

Both start from the same latents and conditioning; each pair runs one after the other, so that a
machine whose speed drifts slows both. Nothing is timed unless the results agree to 0.1 dB. Appends
one JSON line to benchmarks/results/<device>/null_text_speed.jsonl and prints it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pivotal.driver import drive
from pivotal.engine import Engine
from pivotal.images import fit, from_tensor, psnr, read_image, to_tensor
from pivotal.inversion import null_text
from pivotal.query import Conditioning

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from baselines.attention import explicit_copy  # noqa: E402
from baselines.null_text import NullTextInversion, null_text_inversion  # noqa: E402
from baselines.schedule import make_schedule  # noqa: E402

GUIDANCE = 7.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--image", default=str(bundled_picture()))
    parser.add_argument("--prompt", default="a red circle on a gray background")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--no-early-stop", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1, help="ours as one batch, plain in turn")
    parser.add_argument("--profile", action="store_true", help="print where each spends its time")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    engine = Engine.load(given.model)
    picture = fit(read_image(given.image), engine.model.family.default_size).pixels
    with torch.no_grad():
        latents = engine.model.autoencoder.encode(to_tensor(picture))
        cond = engine.model.text.encode([given.prompt])
        null = engine.model.text.encode([""])
    enough = -1.0 if given.no_early_stop else 1e-5
    growth = 0.0 if given.no_early_stop else 2e-5
    rows = torch.zeros(given.images, dtype=torch.int64)
    batch = (latents[rows], cond.select(rows), null.select(rows))
    plain_unet = explicit_copy(engine.model.unet.unet)
    plain_schedule = make_schedule(scheduler_config(engine), given.steps)
    schedule = engine.model.levels.schedule(given.steps)
    options = null_text.NullTextOptions(
        GUIDANCE, given.inner_steps, early_stop=enough, early_stop_growth=growth
    )

    def ours() -> torch.Tensor:
        inverted = drive(null_text.invert(schedule, *batch, options), engine.denoiser)
        return inverted.stored["null_embeddings"][0]  # [steps, L, D]

    def plain() -> torch.Tensor:
        for _ in range(given.images):
            found = plain_once()
        return torch.cat(found.nulls)

    def plain_once() -> NullTextInversion:
        return null_text_inversion(
            plain_unet, plain_schedule, latents, cond.hidden_states, null.hidden_states,
            inner_steps=given.inner_steps, guidance_scale=GUIDANCE, early_stop_epsilon=enough,
        )  # fmt: skip

    if given.profile:
        for name, run in (("ours", ours), ("plain", plain)):
            run()
            print(name, json.dumps(shares(run)))
        return
    decibels = [
        reconstruction(engine, latents, cond, null, embeddings, given.steps, picture)
        for embeddings in (ours(), plain())  # also the warm-up
    ]
    if abs(decibels[0] - decibels[1]) > 0.1:
        raise SystemExit(f"results differ, nothing is timed: {decibels} dB")
    pairs = [(seconds(ours), seconds(plain)) for _ in range(given.pairs)]
    record = {
        "benchmark": "null_text_speed",
        "model": given.model,
        "steps": given.steps,
        "inner_steps": given.inner_steps,
        "images": given.images,
        "early_stop": not given.no_early_stop,
        "psnr": {"ours": decibels[0], "plain": decibels[1]},
        "seconds": {
            "ours": statistics.median(pair[0] for pair in pairs),
            "plain": statistics.median(pair[1] for pair in pairs),
        },
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "samples": pairs,
        "threads": given.threads,
        "environment": environment(),
    }
    folder = ROOT / "results" / "cpu"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "null_text_speed.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record))


def reconstruction(
    engine: Engine,
    latents: torch.Tensor,
    cond: Conditioning,
    null: Conditioning,
    embeddings: torch.Tensor,
    steps: int,
    picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> float:
    """Decibels of the picture that fitted embeddings [steps, L, D] bring back, by one replay."""
    from pivotal.control import NoEdit
    from pivotal.inversion import ddim
    from pivotal.inversion.base import Inverted

    schedule = engine.model.levels.schedule(steps)
    noise = drive(
        ddim.invert(schedule, latents, cond, null, ddim.DDIMOptions()), engine.denoiser
    ).noise
    inverted = Inverted(noise, {"null_embeddings": embeddings[None]})
    back = drive(
        null_text.replay(schedule, inverted, cond, null, GUIDANCE, NoEdit()), engine.denoiser
    )
    with torch.no_grad():
        return psnr(picture, from_tensor(engine.model.autoencoder.decode(back))[0])


def scheduler_config(engine: Engine) -> dict[str, object]:
    """The loaded schedule in diffusers' names, for the baseline's own reader."""
    from dataclasses import asdict

    return asdict(engine.model.levels.config)


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of CPU by kind of operation, self time, as torch's profiler counts them."""
    kinds = {"conv": 0.0, "attention": 0.0, "matmul": 0.0, "norm": 0.0, "rest": 0.0}
    words = {
        "conv": ("conv",),
        "attention": ("attention", "softmax", "bmm"),
        "matmul": ("aten::mm", "addmm"),
        "norm": ("norm",),
    }
    with torch.profiler.profile() as profile:
        run()
    for event in profile.key_averages():
        name = event.key.lower()
        kind = next((k for k, parts in words.items() if any(p in name for p in parts)), "rest")
        kinds[kind] += event.self_cpu_time_total / 1000
    return {kind: round(time, 1) for kind, time in kinds.items()}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bundled_picture() -> Path:
    from importlib.resources import files

    return Path(str(files("pivotal") / "bundled/pictures/scene.png"))


def environment() -> dict[str, object]:
    """What a reader needs to repeat a row."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    dirty = bool(
        subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=False,
        ).stdout.strip()
    )  # fmt: skip
    import diffusers

    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "machine": platform.machine(),
        "command": " ".join(["python", *sys.argv]),
    }


if __name__ == "__main__":
    main()
