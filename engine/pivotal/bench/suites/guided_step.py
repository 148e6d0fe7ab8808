"""The guided DDIM step alone: guidance, the step and an offset, in one kernel and in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.kernels import SUITE, needs
from pivotal.bench.suites.plan import Plan
from pivotal_kernels.guided_step import GuidedStep, Impl, guided_step
from pivotal_kernels.guided_step.api import GUIDED_STEP
from pivotal_kernels.testing import StepInputs, assert_as_exact, guided_step_inputs

ROWS = 4
SIDES = {"shapes at 64": 16, "sd15 at 512": 64, "sdxl at 1024": 128}
"""Latents' height and width."""


def cases(plan: Plan) -> Iterator[Case]:
    for model, side in list(SIDES.items())[: 2 if plan.quick else None]:
        for impl in GUIDED_STEP:
            settings = {"op": "guided_step", "rows": ROWS, "side": side, "dtype": plan.dtype,
                        "impl": impl}  # fmt: skip
            place = f"guided step, {model}"
            yield Case(
                SUITE,
                f"{impl}: {place}",
                _preparing(side, impl, plan),
                settings,
                place,
                needs=needs(impl, plan),
            )


def _preparing(side: int, impl: str, plan: Plan) -> Any:
    def prepare() -> Prepared:
        inputs = guided_step_inputs(
            torch.Generator().manual_seed(side),
            rows=ROWS, height=side, width=side, dtype=getattr(torch, plan.dtype),
        ).mapped(lambda tensor: tensor.to(plan.torch_device))  # fmt: skip

        def check(result: GuidedStep) -> Mapping[str, Any]:
            plain, exact = _stepped(inputs, "reference"), _stepped(inputs.double(), "reference")
            try:
                for name, *found in zip(result._fields, result, plain, exact, strict=True):
                    assert_as_exact(found[0], found[1], found[2], name)
            except AssertionError as error:
                raise WrongResultError(str(error)) from error
            return {}

        return Prepared(lambda: _stepped(inputs, impl), check)

    return prepare


def _stepped(inputs: StepInputs, impl: str) -> GuidedStep:
    return guided_step(**inputs.step(), impl=cast(Impl, impl))
