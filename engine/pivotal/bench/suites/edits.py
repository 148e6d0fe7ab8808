"""Prompt-to-Prompt by number of targets, from one inversion, beside plain sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.suites.checks import require_close
from pivotal.bench.suites.plan import PROMPT, TARGETS, Plan, picture
from pivotal.engine import Engine
from pivotal.inversion_file import Inversion
from pivotal.results import Edited, Generated

SUITE = "edits"
_TOLERANCE = {
    "float64": 1e-6, "float32": 0.01, "tf32": 0.2, "float16": 0.2, "bfloat16": 0.5, "fp8": 0.9,
}  # fmt: skip


def cases(plan: Plan) -> Iterator[Case]:
    inverted = cache(
        lambda: plan.engine.invert(
            picture(), PROMPT, method="direct", num_inference_steps=plan.steps
        )
    )
    # One picture, for iterations a second as others count them; as many as an edit of one samples.
    for count in (1, 2):
        settings = {
            "model": plan.model, "dtype": plan.dtype, "pictures": count, "steps": plan.steps,
        }  # fmt: skip
        name = f"plain sampling, {count} pictures, {plan.steps} steps"
        yield Case(SUITE, name, _sampling(plan, count), settings, plan.model)
    for count in (1, 4) if plan.quick else (1, 2, 4, 8):
        settings = {
            "model": plan.model, "dtype": plan.dtype, "targets": count, "steps": plan.steps,
            "method": "direct",
        }  # fmt: skip
        name = f"{count} targets, {plan.steps} steps"
        yield Case(SUITE, name, _preparing(plan, inverted, count), settings, plan.model)


def _sampling(plan: Plan, count: int) -> Callable[[], Prepared]:
    def run(engine: Engine) -> Generated:
        return engine.generate(list(TARGETS[:count]), num_inference_steps=plan.steps)

    def check(made: Generated) -> Mapping[str, Any]:
        """The last picture is what it is alone."""
        alone = plan.engine.generate(
            TARGETS[count - 1], num_inference_steps=plan.steps, seed=count - 1
        )
        error = require_close(
            made.latents[-1], alone.latents[-1], _TOLERANCE[plan.dtype], "the last picture"
        )
        return {
            "company_error": error, "guided_iterations": plan.steps, "unet_rows": made.unet_rows
        }  # fmt: skip

    return lambda: plan.prepared(run, check, images=count)


def _preparing(plan: Plan, inverted: Any, count: int) -> Any:
    def prepare() -> Prepared:
        inversion: Inversion = inverted()

        def run(engine: Engine) -> Edited:
            return engine.edit(inversion, TARGETS[:count])

        def check(edited: Edited) -> Mapping[str, Any]:
            """The last target is what it is alone, and differs from the source."""
            alone = plan.engine.edit(inversion, TARGETS[count - 1])
            error = require_close(
                edited.latents[-1], alone.latents[-1], _TOLERANCE[plan.dtype], "the last target"
            )
            return {
                "company_error": error,
                "source_psnr": edited.source.psnr,
                "unet_rows": edited.unet_rows,
            }

        return plan.prepared(run, check, images=count)

    return prepare
