"""A backend by name: `onnx`, `tensorrt`, and either with torch for what needs gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pivotal.driver import Denoiser
from pivotal.errors import BackendError
from pivotal.model.load import Model
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.exported.denoiser import ExportedDenoiser, HybridDenoiser
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.parts import PLAIN, UNET
from pivotal.runtime.exported.record import ExportRecord, read_record

BACKENDS = ("torch", "onnx", "tensorrt", "onnx+torch", "tensorrt+torch")


def denoiser_of(
    backend: str,
    model: Model,
    exported: str | Path | None,
    torch_denoiser: Callable[[], Denoiser],
    *,
    allow_foreign: bool = False,
) -> Denoiser:
    """The denoiser that a backend's name stands for.

    exported: the folder where the export lies, for all but torch. allow_foreign: load an engine
    that our exporter did not make; an engine is code, so only from a source you trust.

    Raises ValueError for an unknown name or a folder too much or too few, BackendError for an
    export that does not fit the model, the precision or this machine.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; accepted are {', '.join(BACKENDS)}")
    outside, _, gradients = backend.partition("+")
    if outside == "torch":
        if allow_foreign:
            raise ValueError("allow_foreign is for TensorRT engines; leave it out")
        if exported is not None:
            raise ValueError(f"exported={str(exported)!r} means nothing for backend torch")
        return torch_denoiser()
    if exported is None:
        raise ValueError(
            f"backend={backend!r} needs exported=, the folder that "
            f"`pivotal export {outside} --model {model.name} -o DIR` made"
        )
    made = (_onnx if outside == "onnx" else _tensorrt)(model, Path(exported), allow_foreign)
    return HybridDenoiser(made, torch_denoiser()) if gradients else made


def _onnx(model: Model, folder: Path, allow_foreign: bool) -> Denoiser:
    if allow_foreign:
        raise ValueError("allow_foreign is for TensorRT engines; leave it out")
    record = checked(model, folder)
    if record.dtype == "bfloat16" and model.device.type == "cpu":
        raise BackendError(
            f"{str(folder)!r} holds bfloat16 networks, for which ONNX Runtime has no kernels on a "
            "CPU; export in float32 or float16, or build TensorRT engines of it"
        )
    record.require_intact(folder, "unet.weights")
    routed, plain = (
        OnnxNetwork(record.require_intact(folder, f"{name}.onnx"), model.device)
        for name in (UNET, PLAIN)
    )
    exported = ExportedDenoiser("onnx", routed, plain, record, scale=model.autoencoder.scale)
    rows = record.profile.rows
    buckets = Buckets(tuple(range(rows.low, rows.high + 1)), record.capacity.columns)
    return BucketedDenoiser(exported, buckets, model.unet.layers)


def _tensorrt(model: Model, folder: Path, allow_foreign: bool) -> Denoiser:
    from pivotal.runtime.exported.tensorrt_denoiser import tensorrt_denoiser

    return tensorrt_denoiser(model, folder, allow_foreign=allow_foreign)


def checked(model: Model, folder: Path) -> ExportRecord:
    """The record of an export that is of this model. Raises BackendError."""
    record = read_record(folder)
    if record.engine is not None:
        raise BackendError(
            f"{str(folder)!r} holds TensorRT engines; use backend tensorrt, or export ONNX files"
        )
    record.require_model(model, folder)
    return record
