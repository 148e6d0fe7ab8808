"""What a fresh process waits for: the command's help, the import, the model, the first edit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.plan import PROMPT, TARGETS, Plan, picture

SUITE = "cold-start"


def cases(plan: Plan) -> Iterator[Case]:
    load = f"engine = pivotal.Engine.load({plan.model!r}, device={plan.device!r}, "
    load = f"import pivotal\n{load}dtype={plan.dtype!r})\n"
    programs = {
        "pivotal --version": "from pivotal.cli import main; main(['--version'])",
        "import the engine": "import pivotal.engine; print('done')",
        "load the model": f"{load}print('done')",
        "invert and edit": f"{load}"
        f"kept = engine.invert({str(picture())!r}, {PROMPT!r}, method='direct', "
        f"num_inference_steps={plan.steps})\n"
        f"engine.edit(kept, {TARGETS[0]!r})\n"
        "print('done')",
    }
    for name, code in programs.items():
        settings = {"model": plan.model, "dtype": plan.dtype, "steps": plan.steps}
        yield Case(SUITE, name, _preparing(code), settings, plan.model)


def _preparing(code: str) -> Any:
    def run() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip

    def check(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
        if done.returncode or not done.stdout.strip():
            raise WrongResultError(f"ended with {done.returncode}: {done.stderr[-300:]}")
        return {}

    return lambda: Prepared(run, check, counted=False)
