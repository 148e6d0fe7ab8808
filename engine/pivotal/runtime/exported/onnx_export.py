"""A model's networks to ONNX files, each compared with torch before it is kept."""

from __future__ import annotations

import filecmp
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pivotal import __version__
from pivotal.errors import BackendError
from pivotal.model.load import Model
from pivotal.runtime.exported.comparison import example_shapes
from pivotal.runtime.exported.onnx_check import checked
from pivotal.runtime.exported.parts import Part, capacity_of, parts_of
from pivotal.runtime.exported.profile import ShapeProfile
from pivotal.runtime.exported.record import ExportRecord

logger = logging.getLogger(__name__)

OPSET = 20  # the newest that both TensorRT flavours and ONNX Runtime take whole
OPSETS = {torch.float32: OPSET, torch.float16: OPSET, torch.bfloat16: 22}
"""By the networks' format: the first with a convolution in bfloat16 is 22."""
_INLINE = 1024  # bytes: smaller constants stay in the graph
Told = Callable[[str, int, int], None]
"""(what is being done, parts done, parts in all)."""


def export_onnx(
    model: Model, profile: ShapeProfile, folder: Path, *, told: Told | None = None
) -> ExportRecord:
    """Write all networks of a model and their record into an existing, empty folder.

    The UNet comes twice on one file of weights: `unet.onnx`, with routes and word maps, and
    `unet-plain.onnx`. Weights lie beside the graphs, so that no graph passes ONNX's 2 GB.
    Formats are the model's own, the autoencoder's another than the rest's. told: hears of each
    network.

    Raises ValueError for sizes or formats that can't be exported, BackendError where a package is
    missing or a file differs from torch.
    """
    require_packages()
    precision = model.precision
    if precision.arithmetic != "plain" or not {precision.networks, precision.autoencoder} <= {
        *OPSETS
    }:
        raise ValueError(
            f"dtype={precision.name} is not exported; accepted are "
            f"{', '.join(str(dtype)[6:] for dtype in OPSETS)}"
        )
    parts = list(parts_of(model, profile))
    identity = {
        "pivotal.model": model.name,
        "pivotal.family": model.family.name,
        "pivotal.fingerprint": model.fingerprint,
        "pivotal.dtype": str(model.dtype).removeprefix("torch."),
        **{f"pivotal.profile.{name}": span for name, span in profile.record().items()},
        **{
            f"pivotal.routes.{name}": str(value) for name, value in vars(capacity_of(model)).items()
        },
    }
    errors = {}
    for done, part in enumerate(parts):
        if told is not None:
            told(part.name, done, len(parts))
        path = folder / f"{part.name}.onnx"
        write_onnx(part, profile, path, identity)
        errors[part.name] = checked(part, path, profile)
        logger.info("exported %s: %.1e from torch", path.name, errors[part.name])
    record = ExportRecord(
        model=model.name,
        family=model.family.name,
        fingerprint=model.fingerprint,
        dtype=identity["pivotal.dtype"],
        prediction_type=model.levels.config.prediction_type,
        profile=profile,
        capacity=capacity_of(model),
        versions={
            "pivotal": __version__,
            "opset": str(OPSETS[model.dtype]),
            **{name: version(name) for name in ("torch", "onnx", "onnxscript", "diffusers")},
        },
        errors=errors,
        files={},
        additions=tuple(model.additions),
    ).with_digests(folder)
    record.write(folder)
    return record


def require_packages() -> None:
    """Raise BackendError where the extra `onnx` is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise BackendError(
            f"ONNX export needs {', '.join(missing)}; install them with "
            "`pip install 'pivotal[onnx]'`"
        )


def write_onnx(part: Part, profile: ShapeProfile, path: Path, metadata: dict[str, str]) -> None:
    """Trace a network and write its graph beside its weights. Raises BackendError."""
    import onnx
    import onnx_ir
    from onnxscript import optimizer

    rows, height, width = example_shapes(profile)[0]
    inputs = part.inputs(rows, height, width, 0)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                part.module.eval(),
                (),
                kwargs=inputs,
                dynamic_shapes=part.dynamic,
                input_names=list(inputs),
                output_names=list(part.outputs),
                opset_version=OPSETS[part.dtype],
                dynamo=True,
                optimize=False,  # ONNX Runtime and TensorRT do this themselves, in seconds
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise BackendError(f"{part.name} can't be exported to ONNX: {reason}") from error
    assert program is not None
    graph = program.model
    with _quiet():
        optimizer.fold_constants(graph)
        optimizer.remove_unused_nodes(graph)
    _anonymous(graph)
    graph.metadata_props.update(metadata)
    _require_plain(graph, part, list(inputs))
    _save(onnx_ir, graph, path, part.weights)
    onnx.checker.check_model(str(path))


def _anonymous(graph: Any) -> None:
    """Take out the stack traces, which name this machine's folders."""
    for node in graph.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()


def _require_plain(graph: Any, part: Part, inputs: list[str]) -> None:
    """No operator outside the standard, every input there and used, every output there."""
    foreign = {f"{node.domain}::{node.op_type}" for node in graph.graph if node.domain}
    if foreign or graph.functions:
        raise BackendError(
            f"{part.name} can't be exported: ONNX has no {', '.join(sorted(foreign))}; load the "
            "model on the CPU, where attention is torch's own"
        )
    unused = [each.name for each in graph.graph.inputs if not list(each.uses())]
    names = [each.name for each in graph.graph.inputs]
    outputs = [each.name for each in graph.graph.outputs]
    if unused or names != inputs or outputs != list(part.outputs):
        raise BackendError(
            f"the graph of {part.name} takes {names} ({unused} unused) and gives {outputs}; "
            f"{inputs} and {list(part.outputs)} are expected"
        )


def _save(ir: Any, graph: Any, path: Path, weights: str) -> None:
    """Write graph and weights. Graphs that name the same file share it, to the byte."""
    place = path.parent / weights
    if not place.exists():
        ir.save(graph, path, external_data=weights, size_threshold_bytes=_INLINE)
        return
    first = place.rename(place.with_suffix(".first"))
    ir.save(graph, path, external_data=weights, size_threshold_bytes=_INLINE)
    if not filecmp.cmp(first, place, shallow=False):
        raise BackendError(f"{path.name} does not have the weights of the graph before it")
    first.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own logging and warnings, which nobody can act on, held back."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
