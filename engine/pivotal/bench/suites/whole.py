"""End to end: from a picture to an edited picture, with load, encode, invert, edit and decode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pivotal.bench.cases import Case
from pivotal.bench.suites.checks import require_close
from pivotal.bench.suites.plan import PROMPT, TARGETS, Plan, picture
from pivotal.engine import Engine
from pivotal.results import Edited

SUITE = "end-to-end"


@dataclass(frozen=True)
class _Whole:
    edited: Edited
    seconds: Mapping[str, float]


def cases(plan: Plan) -> Iterator[Case]:
    """The two ends of the methods, each with the model there and with the model loaded anew."""
    for method in ("direct", "null-text"):
        for loaded in (True, False):
            if plan.quick and not loaded and method != "direct":
                continue
            settings = {
                "model": plan.model, "dtype": plan.dtype, "method": method, "steps": plan.steps,
                "loaded": loaded,
            }  # fmt: skip
            name = f"{method}, {plan.steps} steps{'' if loaded else ', with loading'}"
            yield Case(SUITE, name, _preparing(plan, method, loaded), settings, plan.model)


def _preparing(plan: Plan, method: str, loaded: bool) -> Any:
    def run(own: Engine) -> _Whole:
        engine = own if loaded else plan.loaded()
        inversion = engine.invert(picture(), PROMPT, method=method, num_inference_steps=plan.steps)
        edited = engine.edit(inversion, TARGETS[0])
        laps = inversion.report["seconds"]
        return _Whole(
            edited,
            {
                "load": 0.0 if loaded else engine.load_seconds,
                "encode": laps["encode"],
                "invert": laps["invert"],
                "edit": edited.seconds["edit"],
                "decode": edited.seconds["decode"],
                "plan": edited.seconds["plan"],
            },
        )

    def check(whole: _Whole) -> Mapping[str, Any]:
        """A second run gives the same latents."""
        again = run(plan.engine)
        error = require_close(again.edited.latents, whole.edited.latents, 1e-3, "a second run")
        return {"repeat_error": error, "laps": dict(again.seconds)}

    if not loaded:  # a new engine each time, compiled or not: nothing to count it by
        return lambda: plan.prepared(run, check, counted=False, eager=None)
    return lambda: plan.prepared(run, check)
