"""All that needs a GPU, in one visit: tests, kernels, the network, calls, the ladder, a profile.

    python benchmarks/gpu.py OUT [--part NAME ..] [--minutes 25] [--dry]

For machines that are lent by the minute: parts run in the order of what they tell, each command has
a limit, and what was found so far is in OUT at any time: logs, summary.json, and the rows of the
harness under OUT/results. Weights are random, which speed does not depend on. --dry runs the same
commands on a CPU, on the bundled model and as shortly as they can, without compiling, to see that
they would run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIVOTAL = "python -m pivotal"
LEAST = 20.0  # seconds that must be left for a command to begin

REAL = {
    "device": "cuda", "dtype": "float16", "model": "random:sd1", "sdxl": "random:sdxl",
    "side": "64", "steps": "50", "thirty": "30", "few": "10",
    "inner": "3", "pairs": "5", "samples": "--samples 50",
    "effort": "--rounds 20 --seconds 15", "tests": "-m gpu", "compile": "--compile",
}  # fmt: skip
DRY = REAL | {
    "device": "cpu", "dtype": "float32", "model": "shapes", "sdxl": "shapes", "side": "16",
    "steps": "2", "thirty": "2", "few": "2", "inner": "1", "pairs": "1", "samples": "--samples 2",
    "effort": "--rounds 1 --seconds 0", "tests": "--collect-only -m gpu", "compile": "",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """seconds: at most, of each command. `{name}` in a command is one of REAL's, or DRY's."""

    name: str
    seconds: float
    commands: tuple[str, ...]


def _bench(more: str, model: str = "model") -> str:
    return (
        f"{PIVOTAL} bench --model {{{model}}} --device {{device}} --dtype {{dtype}} {{effort}} "
        f"--results {{out}}/results --quiet {more}"
    )


def _profile(phase: str, method: str) -> str:
    return (
        f"{PIVOTAL} profile --model {{model}} --device {{device}} --dtype {{dtype}} "
        f"--steps {{few}} --phase {phase} --method {method} "
        f"-o {{out}}/{phase}.trace.json.gz --force"
    )


PARTS = (
    Part("doctor", 60, (f"{PIVOTAL} doctor --json",)),
    Part("tests", 420, ("python -m pytest -q -p no:cacheprovider {tests} tests",)),
    Part("network", 300, (_bench("--suite unet {compile}"),)),
    Part(
        "calls",
        420,
        (_bench("--suite edits --suite methods --suite end-to-end {compile} --steps {steps}"),),
    ),
    Part("kernels", 120, (
        _bench("--suite kernels"),
        "python benchmarks/kernels/routed_attention.py --device {device} --dtype {dtype} {samples} "
        "--results {out}/results",
        "python benchmarks/kernels/group_norm_silu.py --device {device} --dtype {dtype} {samples} "
        "--results {out}/results",
        "python benchmarks/kernels/fused_qkv.py --device {device} --dtype {dtype} {samples} "
        "--results {out}/results",
    )),
    Part("ladder", 420, (
        "python benchmarks/ladder.py --model {model} --device {device} --steps {few} "
        "--inner-steps {inner} {effort} {compile} --results {out}/results",
    )),
    Part("routes", 200, (
        "python benchmarks/compiled.py routes --model {model} --side {side} --device {device} "
        "--dtype {dtype} --pairs {pairs} {compile} --results {out}/results",
    )),
    Part("profile", 120, (
        _profile("sample", "direct"),
        _profile("fit", "null-text"),
    )),
    Part("sdxl", 420, (_bench("--suite unet --suite edits {compile} --steps {thirty}", "sdxl"),)),
    Part("service", 300, (
        _bench("--suite concurrency --suite calls --suite cold-start --steps {few}"),
    )),
    Part("sanitizer", 300, (
        "compute-sanitizer --error-exitcode 9 python -m pytest -q -p no:cacheprovider {tests} "
        "tests/kernels",
    )),
    Part("report", 120, (
        f"{PIVOTAL} bench report {{out}}/results -o {{out}}/report.html --force",
    )),
)  # fmt: skip


def commands(part: Part, values: Mapping[str, str], out: Path) -> Iterator[list[str]]:
    for each in part.commands:
        words = each.format(**values, out=out).split()
        yield [sys.executable if word == "python" else word for word in words]


def run(words: list[str], log: Path, limit: float) -> str:
    """`done`, or why it isn't. What it prints is added to the log."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not installed"
    with log.open("a") as file:
        print("$", *words, file=file, flush=True)
        try:
            ended = subprocess.run(
                words, cwd=ROOT, stdout=file, stderr=file, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return f"ended after its {limit:.0f} s"
    return "done" if ended.returncode == 0 else f"ended with {ended.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS])
    parser.add_argument("--minutes", type=float, default=25.0, help="in all")
    parser.add_argument("--dry", action="store_true", help="on a CPU, as shortly as it can")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    until = time.monotonic() + 60 * given.minutes
    summary = []
    for part in PARTS:
        if given.part and part.name not in given.part:
            continue
        for words in commands(part, DRY if given.dry else REAL, out):
            start = time.monotonic()
            left = until - start
            state = "no time left"
            if left > LEAST:
                state = run(words, out / f"{part.name}.log", min(part.seconds, left))
            summary.append(
                {
                    "part": part.name,
                    "command": " ".join(["python", *words[1:]]).replace(str(out), "OUT"),
                    "state": state,
                    "seconds": round(time.monotonic() - start, 1),
                }
            )
            (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
            print(f"{part.name}: {state} after {summary[-1]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
