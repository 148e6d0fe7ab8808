"""What a programmer waits for beside the network: a cached inversion, an edit from a file, a
cancelled edit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.checks import require_close, require_finite
from pivotal.bench.suites.plan import PROMPT, TARGETS, Plan, picture
from pivotal.cache import InversionCache
from pivotal.cancellation import Cancellation
from pivotal.engine import Engine
from pivotal.errors import Cancelled
from pivotal.inversion_file import Inversion, read_inversion, write_inversion
from pivotal.results import Edited

SUITE = "calls"
METHOD = "direct"


def cases(plan: Plan) -> Iterator[Case]:
    work = _Work(plan)
    settings = {"model": plan.model, "dtype": plan.dtype, "steps": plan.steps, "method": METHOD}
    for name, make in (
        ("inversion from the cache", work.cached),
        ("edit from a file", work.from_file),
        ("edit cancelled at its first step", work.cancelled),
    ):
        title = f"{name}, {plan.steps} steps"
        yield Case(SUITE, title, make, {**settings, "call": name}, plan.model)


@dataclass(frozen=True)
class _Work:
    """One inversion that the cases share, in a cache and in a file of its own."""

    plan: Plan

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory()

    @cached_property
    def _engine(self) -> Engine:
        cache = InversionCache(Path(self._folder.name) / "cache")
        return self.plan.loaded(cache=cache)

    def _invert(self) -> Inversion:
        return self._engine.invert(
            picture(), PROMPT, method=METHOD, num_inference_steps=self.plan.steps
        )

    @cached_property
    def _inverted(self) -> Inversion:
        return self._invert()

    def cached(self) -> Prepared:
        expected = self._inverted

        def check(found: Inversion) -> Mapping[str, Any]:
            if not found.report["cached"]:
                raise WrongResultError("the inversion was not in the cache")
            error = require_close(found.inverted.noise, expected.inverted.noise, 0.0, "its noise")
            return {"error": error}

        return Prepared(self._invert, check, counted=False)

    def from_file(self) -> Prepared:
        file = Path(self._folder.name) / "inversion.safetensors"
        write_inversion(self._inverted, file)

        def check(edited: Edited) -> Mapping[str, Any]:
            require_finite(edited.latents, "the edit")
            return {"bytes": file.stat().st_size, "source_psnr": edited.source.psnr}

        return Prepared(
            lambda: self._engine.edit(read_inversion(file), TARGETS[0]), check, counted=False
        )

    def cancelled(self) -> Prepared:
        """From the call to its end, which no more than the step under way may delay."""
        inversion = self._inverted

        def run() -> bool:
            cancellation = Cancellation()
            try:
                self._engine.edit(
                    inversion, TARGETS[0], cancellation=cancellation,
                    on_progress=lambda notice: cancellation.cancel(),
                )  # fmt: skip
            except Cancelled:
                return True
            return False

        def check(was_cancelled: bool) -> Mapping[str, Any]:
            if not was_cancelled:
                raise WrongResultError("the edit went on to its end")
            return {}

        return Prepared(run, check, counted=False)
