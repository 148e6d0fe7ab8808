"""TensorRT engines as a denoiser: what they must fit, and the golden check."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from pivotal.driver import Denoiser
from pivotal.errors import BackendError
from pivotal.model.fingerprint import DISPLAYED
from pivotal.model.load import Model
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.cuda_graphs import GraphedDenoiser
from pivotal.runtime.exported.comparison import answers, compare
from pivotal.runtime.exported.denoiser import ExportedDenoiser
from pivotal.runtime.exported.engine_seal import is_sealed, key_file
from pivotal.runtime.exported.parts import PLAIN, UNET, capacity_of, pixel_unit, unet_parts
from pivotal.runtime.exported.probing import probe
from pivotal.runtime.exported.profile import Span
from pivotal.runtime.exported.record import EngineFacts, ExportRecord, digest, read_record
from pivotal.runtime.exported.tensorrt_api import Api, api_of, current_sm
from pivotal.runtime.exported.tensorrt_network import TensorRTNetwork

ONNX = "onnx"  # the folder beside engines that holds the weights they are refitted with


def tensorrt_denoiser(
    model: Model, folder: Path, *, allow_foreign: bool = False, graphs: bool = True
) -> Denoiser:
    """A denoiser on a folder of engines, in their buckets, replayed as CUDA graphs.

    allow_foreign: load engines that this user's exporter did not seal, or files that are not those
    it sealed. An engine file is code that this process runs, so do that only with one from a source
    you trust. What is foreign is always compared with torch first.

    Raises BackendError for an export that does not fit the model, its precision, this machine's
    GPU or TensorRT, for a foreign file, and for engines that differ from torch.
    """
    record = read_record(folder, "tensorrt")
    facts = record.engine
    if facts is None:
        raise BackendError(
            f"{str(folder)!r} holds no engines; build them: "
            f"`pivotal export tensorrt --model {shlex.quote(model.name)} "
            f"--onnx {shlex.quote(str(folder))} -o DIR`"
        )
    weights = weights_for(record, facts, folder)
    (weights or record).require_model(model, folder)
    sm = current_sm(model.device)
    require_machine(record, facts, folder, sm, _version(facts.flavour))
    if model.device.type != "cuda":
        raise BackendError(
            f"{str(folder)!r} holds TensorRT engines, which run on a CUDA device, not on "
            f"{model.device}; say device cuda, or use backend onnx or torch"
        )
    ours = is_ours(record, folder, allow_foreign=allow_foreign)
    networks = _networks(model, folder, facts, weights)
    if not ours or weights is not None or sm not in facts.checked:
        _errors(model, record, networks)
    denoiser: Denoiser = ExportedDenoiser(
        "tensorrt", *networks, record, scale=model.autoencoder.scale
    )
    if graphs:
        denoiser = GraphedDenoiser(denoiser, model.device)
    buckets = Buckets(facts.buckets, record.capacity.columns)
    return BucketedDenoiser(denoiser, buckets, model.unet.layers)


def is_ours(record: ExportRecord, folder: Path, *, allow_foreign: bool) -> bool:
    """Whether this user's exporter wrote the engines and their record, as they are.

    Raises BackendError where it did not and that is not allowed, and for files that are missing.
    """
    paths = [folder / f"{name}.engine" for name in (UNET, PLAIN)]
    for path in paths:
        if not path.is_file():
            raise BackendError(f"{str(path)!r} is missing; build again: {record.again(folder)}")
    foreign = [str(path) for path in paths if record.files.get(path.name) != digest(path)]
    if not foreign and is_sealed(record):
        return True
    if not allow_foreign:
        what = (
            f"{', '.join(map(repr, foreign))} is not what was built"
            if foreign
            else f"{str(folder)!r} was not built by this user's pivotal: its seal does not fit the "
            f"key in {str(key_file())!r}"
        )
        raise BackendError(
            f"{what}; an engine file is code: build it again, {record.again(folder)}, or, if you "
            "trust where it comes from, say allow_foreign (--allow-foreign-engine)"
        )
    return False


def weights_for(record: ExportRecord, facts: EngineFacts, folder: Path) -> ExportRecord | None:
    """The ONNX export in the folder `onnx` beside refittable engines, whose weights they take
    instead of their own; None without one. It may be another model's, of the same architecture.
    Stripped engines that were not made refittable too take their own weights back and no others.

    Raises BackendError where stripped engines have none, and for one that does not fit.
    """
    place = folder / ONNX
    if not (facts.stripped or (facts.refittable and place.is_dir())):
        return None
    found = read_record(place)
    for name in ("dtype", "prediction_type", "capacity", "family"):
        own, other = getattr(record, name), getattr(found, name)
        if own != other:
            raise BackendError(
                f"{str(place)!r} has {name} {other}, the engines beside it {own}; export a model "
                "of the same architecture and format there"
            )
    if not facts.refittable and found.fingerprint != record.fingerprint:
        raise BackendError(
            f"{str(place)!r} is of model {found.model!r} ({found.fingerprint[:DISPLAYED]}), and "
            f"the engines beside it take back {record.model!r} ({record.fingerprint[:DISPLAYED]}) "
            "alone; build them with --refit too"
        )
    for name in ("unet.weights", f"{UNET}.onnx", f"{PLAIN}.onnx"):
        found.require_intact(place, name)
    return found


def require_machine(
    record: ExportRecord, facts: EngineFacts, folder: Path, sm: str | None, version: str | None
) -> None:
    """Raise BackendError for engines of another GPU or another TensorRT, with what rebuilds them.

    sm: this machine's compute capability, version: of the flavour that is installed; None where
    there is none.
    """
    built = (
        f"{str(folder)!r} was built by {facts.flavour} {facts.version} for sm {', '.join(facts.sm)}"
    )
    if version is None:
        raise BackendError(
            f"{built}, and {facts.flavour} is not installed; install it with "
            f"`pip install 'pivotal[{facts.flavour.replace('_', '-')}]'`"
        )
    if version != facts.version:
        raise BackendError(
            f"{built}, and {version} is installed; build again: {record.again(folder)}"
        )
    if sm is None:
        raise BackendError(f"{built}, and there is no CUDA device here; use backend onnx or torch")
    if sm not in facts.sm:
        again = replace(record, engine=replace(facts, sm=(sm,))).again()
        raise BackendError(f"{built}, and this GPU is sm {sm}; build again: {again}")


def compared(model: Model, record: ExportRecord, folder: Path) -> ExportRecord:
    """The golden check: engines against torch, at every bucket, and each layer's route probed.

    Raises BackendError, EditWithoutEffectError.
    Needs the GPU. Returns the record with what was found.
    """
    facts = record.engine
    assert facts is not None
    networks = _networks(model, folder, facts, weights_for(record, facts, folder))
    errors = _errors(model, record, networks)
    checked = (*facts.checked, str(current_sm(model.device)))
    return replace(record, errors=errors, engine=replace(facts, checked=checked))


def _errors(
    model: Model,
    record: ExportRecord,
    networks: tuple[TensorRTNetwork, TensorRTNetwork],
) -> dict[str, float]:
    facts = record.engine
    assert facts is not None
    errors: dict[str, float] = {}
    for rows in facts.buckets:
        profile = replace(record.profile, rows=Span(rows, rows))
        parts = unet_parts(
            model.unet, capacity_of(model), profile, model.autoencoder.scale, pixel_unit(model)
        )
        for part, network in zip(parts, networks, strict=True):
            found = compare(part, answers(part, network, profile), profile)
            errors[part.name] = max(found, errors.get(part.name, 0.0))
    probe(model, networks[0], record, facts.buckets)
    return errors


def _networks(
    model: Model, folder: Path, facts: EngineFacts, weights: ExportRecord | None
) -> tuple[TensorRTNetwork, TensorRTNetwork]:
    api = api_of(facts.flavour)
    routed, plain = (
        TensorRTNetwork(
            folder / f"{name}.engine",
            api,
            model.device,
            weights=None if weights is None else folder / ONNX / f"{name}.onnx",
        )
        for name in (UNET, PLAIN)
    )
    return routed, plain


def _version(flavour: str) -> str | None:
    try:
        api: Api = api_of(flavour)
    except BackendError:
        return None
    return api.version
