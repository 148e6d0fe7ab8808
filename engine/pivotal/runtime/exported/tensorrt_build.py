"""ONNX files of the UNet to TensorRT engines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pivotal.errors import BackendError
from pivotal.images.writing import require_writable, write_atomically
from pivotal.model.load import Model
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.exported.engine_seal import require_key, sealed
from pivotal.runtime.exported.parts import PLAIN, UNET
from pivotal.runtime.exported.profile import ShapeProfile
from pivotal.runtime.exported.record import EngineFacts, ExportRecord, read_record
from pivotal.runtime.exported.tensorrt_api import Api, current_sm, on_gpu
from pivotal.runtime.exported.tensorrt_denoiser import compared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """sm: compute capabilities, this machine's if none. buckets: batch sizes, each an optimisation
    profile of its own, as engines of dynamic batches are slower. refit: weights can be exchanged
    (slower). strip_weights: leave weights out; without refit the engine takes its own back and no
    others. workspace: bytes of
    scratch memory. timing_cache: a file to read and add to, for TensorRT alone: TensorRT-RTX picks
    kernels when an engine runs, not when it is built.
    """

    sm: tuple[str, ...] = ()
    buckets: tuple[int, ...] = (1, 2, 4, 8, 18)  # to invert one picture; to edit it eightfold
    refit: bool = False
    strip_weights: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        Buckets(self.buckets)  # raises ValueError for sizes that do not ascend
        if self.workspace is not None and self.workspace < 1:
            raise ValueError(f"workspace={self.workspace}; at least 1 byte is needed")

    def require(self, api: Api, device: torch.device | None = None) -> None:
        """Raise ValueError for what this flavour can't do here, on a device, OutputError for a
        timing cache that can't be written, BackendError without a key to seal engines with.
        """
        api.require_targets(self.sm, device)
        if self.timing_cache is not None:
            if api.ahead_of_time:
                raise ValueError(
                    f"timing_cache={str(self.timing_cache)!r} means nothing for {api.flavour}, "
                    "which picks kernels when an engine runs; leave it out"
                )
            require_writable(self.timing_cache)
        require_key()


def build_engines(
    model: Model,
    source: Path,
    folder: Path,
    api: Api,
    options: BuildOptions,
    *,
    told: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExportRecord:
    """Build the UNet's engines, with routes and without, and write them and their record.

    source: an ONNX export. On a machine with the GPU that they are for, the engines are compared
    with torch at once; elsewhere the record says that they were not, and loading does it.

    Raises ValueError for targets or batches that can't be had, BackendError for a failed build.
    """
    options.require(api, model.device)
    onnx = read_record(source)
    if onnx.engine is not None:
        raise ValueError(f"{str(source)!r} holds engines; an ONNX export is needed to build from")
    largest = options.buckets[-1]
    if largest not in onnx.profile.rows or options.buckets[0] not in onnx.profile.rows:
        raise ValueError(
            f"buckets={options.buckets} are outside the ONNX export's rows {onnx.profile.rows}"
        )
    own = current_sm(model.device)
    sm = options.sm or (str(own),)
    onnx.require_intact(source, "unet.weights")
    for name in (UNET, PLAIN):
        path = onnx.require_intact(source, f"{name}.onnx")
        plan = build(
            path,
            onnx.profile,
            model.autoencoder.scale,
            api,
            replace(options, sm=sm),
            told=partial(_named, told, name),
            stop=stop,
            device=model.device,
        )
        (folder / f"{name}.engine").write_bytes(plan)
    record = replace(
        onnx,
        versions={**onnx.versions, api.flavour: api.version},
        errors={},
        files={},
        engine=EngineFacts(
            flavour=api.flavour,
            version=api.version,
            sm=sm,
            buckets=options.buckets,
            refittable=options.refit,
            stripped=options.strip_weights,
            checked=(),
        ),
    )
    record = record.with_digests(folder)
    if own in sm and model.device.type == "cuda":
        record = compared(model, record, folder)
    record = sealed(record)
    record.write(folder)
    return record


def _named(told: Callable[[str], None], name: str, phase: str) -> None:
    told(f"{name}: {phase}")


def _timing_cache(config: Any, path: Path) -> Any:
    """What a file holds, or an empty one, given to the builder. Raises BackendError for another
    machine's.
    """
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{str(path)!r} is no timing cache of this TensorRT and GPU; name another file"
        )
    return cache


def build(
    path: Path,
    profile: ShapeProfile,
    scale: int,
    api: Api,
    options: BuildOptions,
    *,
    told: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    device: torch.device | None = None,
) -> memoryview:
    """A serialized engine of one ONNX file, strongly typed: formats are the file's own.

    It is the builder's own memory, as a copy of a large model's is gigabytes. device: the GPU that
    TensorRT times kernels on; the current one if None. Raises BackendError with TensorRT's own
    reason, and what `told` raises.
    """
    with on_gpu(device):
        return _built(path, profile, scale, api, options, told, stop)


def _built(
    path: Path,
    profile: ShapeProfile,
    scale: int,
    api: Api,
    options: BuildOptions,
    told: Callable[[str], None],
    stop: Callable[[], bool],
) -> memoryview:
    trt, log = api.module, api.logger()
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendError(f"{api.flavour} can't read {path.name}: {reasons or log.last_error}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # set by default; float32 means float32
    monitor = config.progress_monitor = api.monitor(told, stop)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.strip_weights:  # alone, an engine that takes its own weights back and no others
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if api.ahead_of_time:
        config.num_compute_capabilities = len(options.sm)
        for place, sm in enumerate(options.sm):
            capability = getattr(trt.ComputeCapability, f"SM{sm}")
            if not config.set_compute_capability(capability, place):
                raise BackendError(f"{api.flavour} {api.version} can't build for sm {sm}")
    timings = options.timing_cache
    cache: Any = None if timings is None else _timing_cache(config, timings)
    for shapes in profiles(network, profile, options.buckets, scale):
        optimisation = builder.create_optimization_profile()
        for name, (low, high) in shapes.items():
            optimisation.set_shape(name, low, high, high)
        if config.add_optimization_profile(optimisation) < 0:
            raise BackendError(f"{api.flavour} refuses the profile {shapes}: {log.last_error}")
    plan = builder.build_serialized_network(network, config)
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        if stop():
            raise KeyboardInterrupt
        raise BackendError(f"{api.flavour} can't build {path.name}: {log.last_error}")
    if timings is not None:
        write_atomically(timings, bytes(cache.serialize()))
    return memoryview(plan)


def profiles(
    network: Any, profile: ShapeProfile, buckets: tuple[int, ...], scale: int
) -> Iterator[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """For each bucket every input's smallest and largest shape: rows fixed, sides as far as the
    profile lets them vary. The largest is what TensorRT optimises for. scale: pixels per latent.
    """
    sides = {2: profile.height, 3: profile.width}
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    for rows in buckets:
        shapes = {}
        for each in inputs:
            low, high = [], []
            for place, size in enumerate(tuple(each.shape)):
                side = sides.get(place) if each.name == "latents" else None
                varying = (rows, rows) if side is None else (side.low // scale, side.high // scale)
                low.append(size if size >= 0 else varying[0])
                high.append(size if size >= 0 else varying[1])
            shapes[each.name] = (tuple(low), tuple(high))
        yield shapes
