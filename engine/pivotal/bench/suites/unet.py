"""The network alone: forward, and forward with backward, by rows, size, dtype and backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.suites.checks import require_close, require_finite
from pivotal.bench.suites.plan import PROMPT, Plan
from pivotal.driver import Denoiser
from pivotal.query import Answer, Denoise, NoiseGradient, NoiseLoss
from pivotal.runtime.exported.backend import denoiser_of
from pivotal.runtime.exported.record import read_record

SUITE = "unet"
# A row alone against the same row in company: kernels sum in another order. Over eps and gradients.
_TOLERANCE = {
    "float64": 1e-9, "float32": 1e-3, "tf32": 0.02, "float16": 0.02, "bfloat16": 0.1, "fp8": 0.5,
}  # fmt: skip


def cases(plan: Plan) -> Iterator[Case]:
    """Rows 1, 2, 4, 8; the model's size and double its sides; its dtype and, on request, others."""
    rows = (1, 4) if plan.quick else (1, 2, 4, 8, 16)
    backends = ["torch"] if plan.quick else ["torch", "compiled", "onnx", "tensorrt"]
    if plan.quick and plan.compile:
        backends.append("compiled")
    if plan.quick and plan.exported is not None:
        backends.append(_kind(plan.exported))
    dtypes = [plan.dtype]
    if not plan.quick:
        dtypes += [name for name in ("bfloat16", "float16") if name != plan.dtype]
    for dtype in dtypes:
        at = replace(plan, dtype=dtype)
        for scale in (1,) if plan.quick else (1, 2):
            for batch in rows:
                yield from (_case(at, batch, scale, "forward", each) for each in backends)
            for batch in rows[:1] if plan.quick else rows[:3]:
                yield from (
                    _case(at, batch, scale, "forward and backward", each)
                    for each in backends
                    if each in ("torch", "compiled")  # the others answer no gradients
                )


def _case(plan: Plan, rows: int, scale: int, work: str, backend: str) -> Case:
    settings = {
        "model": plan.model, "dtype": plan.dtype, "rows": rows, "scale": scale, "work": work,
        "backend": backend,
    }  # fmt: skip
    side = "" if scale == 1 else f", sides x {scale}"
    if plan.size is not None:
        settings["size"] = list(plan.size)
        side = f", {plan.size[0]}x{plan.size[1]} pixels{side}"
    name = f"{plan.model} {plan.dtype}, {work}, {rows} rows{side}"
    name += "" if backend == "torch" else f", {backend}"
    group = f"{plan.model} {plan.dtype}"
    return Case(
        SUITE, name, lambda: _prepare(plan, rows, scale, work, backend), settings, group,
        needs=_needs(plan, backend),
    )  # fmt: skip


def _needs(plan: Plan, backend: str) -> str | None:
    """Why a backend can't be timed, or None."""
    if backend in ("torch", "compiled"):
        return None
    if plan.exported is None or _kind(plan.exported) != backend:
        return f"--exported FOLDER is needed, from `pivotal export {backend}`"
    return None


def _kind(exported: Path) -> str:
    """The backend that an export is for. Raises BackendError for a folder that is none."""
    return "onnx" if read_record(exported).engine is None else "tensorrt"


def _prepare(plan: Plan, rows: int, scale: int, work: str, backend: str) -> Prepared:
    model, eager = plan.eager.model, plan.eager.denoiser
    denoiser = eager if backend == "torch" else _other(plan, backend)
    height, width = plan.size or model.default_size
    size = (height * scale, width * scale)
    query = question(plan, rows, size, backward=work != "forward")
    pixels = size[0] // model.autoencoder.scale * (size[1] // model.autoencoder.scale)

    def check(answer: Answer) -> Mapping[str, Any]:
        """Row 0 is what it is alone, run eagerly."""
        alone = eager.answer(query.select(torch.tensor([0])))
        found = {"eps": (answer.eps[:1], alone.eps)}
        if isinstance(answer, NoiseLoss) and isinstance(alone, NoiseLoss):
            found["gradient"] = (answer.gradient[:1], alone.gradient)
        require_finite(answer.eps, "eps")
        tolerance = _TOLERANCE[plan.dtype]
        return {
            f"{name}_error": require_close(*pair, tolerance, name) for name, pair in found.items()
        } | {"latents": pixels}

    def run(answering: Denoiser = denoiser) -> Answer:
        with torch.no_grad():
            return answering.answer(query)

    if backend == "torch":
        return Prepared(run, check)
    compiled = backend == "compiled"  # the others take memory of their own
    return Prepared(
        run, check, compile=run if compiled else None, counted=compiled, eager=lambda: run(eager)
    )


def _other(plan: Plan, backend: str) -> Denoiser:
    """The same weights exported, or compiled as an engine has it, whose first answer compiles."""
    if backend == "compiled":
        return plan.compiled.denoiser
    return denoiser_of(backend, plan.eager.model, plan.exported, lambda: plan.eager.denoiser)


def question(
    plan: Plan, rows: int, size: tuple[int, int], *, backward: bool
) -> Denoise | NoiseGradient:
    """What an algorithm asks in mid-run: seeded noise at the middle of a schedule."""
    model = plan.eager.model
    scale, channels = model.autoencoder.scale, model.autoencoder.channels
    generator = torch.Generator().manual_seed(0)
    shape = (rows, channels, size[0] // scale, size[1] // scale)
    latents = torch.randn(shape, generator=generator).to(model.device)
    level = model.levels.schedule(10).levels[5]
    with torch.no_grad():
        told = model.text.encode([PROMPT] * rows, size).to(model.device)
    asked = Denoise.at(latents, level, told)
    if not backward:
        return asked
    ones = torch.ones(rows, device=model.device)
    return NoiseGradient(latents, asked.timesteps, asked.alpha_bars, told, ones, latents)
