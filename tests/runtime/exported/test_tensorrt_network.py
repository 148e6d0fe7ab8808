"""What is done with an engine: TensorRT's Python classes with ONNX Runtime behind them.

An engine's file names an ONNX file and its optimisation profiles. What the stand-in reads and
writes it knows by address alone, as TensorRT does; it spoils its scratch memory at each run.
"""

import ctypes
import enum
import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pivotal.errors import BackendError, EditWithoutEffectError
from pivotal.query import Denoise
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.runtime.cuda_graphs import GraphedDenoiser
from pivotal.runtime.exported import tensorrt_denoiser as denoising
from pivotal.runtime.exported.denoiser import ExportedDenoiser
from pivotal.runtime.exported.engine_seal import sealed
from pivotal.runtime.exported.record import EngineFacts
from pivotal.runtime.exported.tensorrt_api import Api, api_of, current_sm
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build, profiles
from pivotal.runtime.exported.tensorrt_network import TensorRTNetwork

TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(int64)": ("INT64", np.int64)}
INDICES = ("self_queries", "self_keys", "self_values", "donors")


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, INT32 = range(5)


class ExecutionContextAllocationStrategy(enum.Enum):
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    EAGER = 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Runtime:
    def __init__(self, log):
        self.log = log

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(b"{"):
            self.log.log(ILogger.Severity.ERROR, "magic tag does not match\nmore")
            return None
        return ICudaEngine(**json.loads(plan))


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class ICudaEngine:
    def __init__(self, onnx, limits):
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.limits = limits
        self.taken = {each.name: each.type for each in self.session.get_inputs()}
        self.given = {each.name: each.type for each in self.session.get_outputs()}
        self.contexts = []
        self.running = threading.Lock()

    num_io_tensors = property(lambda self: len(self.taken) + len(self.given))
    num_optimization_profiles = property(lambda self: len(self.limits))

    def get_tensor_name(self, place):
        return [*self.taken, *self.given][place]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.taken else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[TYPES[{**self.taken, **self.given}[name]][0]]

    def get_tensor_profile_shape(self, name, profile):
        low, high = (tuple(each) for each in self.limits[profile][name])
        return low, high, high

    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_execution_context(self, config):
        assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
        self.contexts.append(IExecutionContext(self))
        return self.contexts[-1]


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._profile = engine, {}, None
        self._addresses, self._asked = {}, None
        self.seen = []  # the addresses of each run
        self.scratch = None

    def set_optimization_profile_async(self, profile, stream):
        self._profile = profile
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name):
        assert set(self._shapes) == set(self._engine.taken)
        return self._run({each: np.zeros(shape, self._type(each)) for each, shape in
                          self._shapes.items()})[name].shape  # fmt: skip

    def update_device_memory_size_for_shapes(self):
        self._asked = 1000 * self._shapes["latents"][0]
        return self._asked

    def set_device_memory(self, memory, size):
        assert size >= self._asked
        self.scratch = (memory, size)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream):
        assert self._engine.running.acquire(blocking=False), "two runs share scratch memory"
        try:
            ctypes.memset(*self.scratch[:1], 0xFF, self.scratch[1])
            found = self._run({name: self._read(name) for name in self._engine.taken})
            for name, value in found.items():
                ctypes.memmove(self._addresses[name], value.tobytes(), value.nbytes)
            self.seen.append(dict(self._addresses))
        finally:
            self._engine.running.release()
        return True

    def _type(self, name):
        return TYPES[self._engine.taken[name]][1]

    def _read(self, name):
        kind, shape = np.dtype(self._type(name)), self._shapes[name]
        size = int(np.prod(shape)) * kind.itemsize
        content = ctypes.string_at(self._addresses[name], size)
        return np.frombuffer(content, kind).reshape(shape)

    def _run(self, inputs):
        safe = {
            name: value.clip(0, self._shapes["latents"][0] - 1) if name in INDICES else value
            for name, value in inputs.items()
        }
        return dict(zip(self._engine.given, self._engine.session.run(None, safe), strict=True))


CPU = torch.device("cpu")
FACTS = EngineFacts("tensorrt_rtx", "1.7", ("89",), (2, 4), False, False, ())
MODULE = SimpleNamespace(
    TensorIOMode=TensorIOMode,
    DataType=DataType,
    ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
    DynamicShapesKernelSpecializationStrategy=DynamicShapesKernelSpecializationStrategy,
    ILogger=ILogger,
    Runtime=Runtime,
)


def engine_file(path, file, profile, buckets):
    """What an engine of an ONNX file in buckets is to `Runtime`."""
    graph = onnx.load(file, load_external_data=False).graph
    inputs = [
        SimpleNamespace(
            name=each.name,
            shape=[side.dim_value or -1 for side in each.type.tensor_type.shape.dim],
        )
        for each in graph.input
    ]
    network = SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__)
    limits = list(profiles(network, profile, buckets, 2))
    path.write_text(json.dumps({"onnx": str(file), "limits": limits}))


@pytest.fixture
def networks(small, tmp_path, monkeypatch):
    """Both of a UNet's engines, for batches of 2 and 4."""
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    made = []
    for name in ("unet", "unet-plain"):
        path = tmp_path / f"{name}.engine"
        engine_file(path, small.folder / f"{name}.onnx", small.record.profile, FACTS.buckets)
        made.append(TensorRTNetwork(path, Api("tensorrt_rtx", MODULE), CPU))
    return made


def inputs_of(small, rows, seed):
    return small.parts[0].inputs(rows, 16, 16, seed)


def far(mine, torchs):
    return max(
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(mine, torchs, strict=True)
    )


def test_answers_of_any_size_in_the_buckets_are_torchs(
    small, networks, latents, prompts, swap_routes
):
    exported = ExportedDenoiser("tensorrt", *networks, small.record, scale=2)
    mine = BucketedDenoiser(exported, Buckets(FACTS.buckets), small.unet.layers)
    torchs = small.torch()
    for rows in (1, 2, 3, 4, 7):
        query = Denoise(
            latents(rows, dtype=torch.float32),
            torch.linspace(3.5, 981, rows),
            torch.linspace(0.9, 0.1, rows, dtype=torch.float64),
            prompts(rows, dtype=torch.float32),
        )
        assert far([mine.answer(query).eps], [torchs.answer(query).eps]) < 1e-4
    routed = replace(query.select(torch.arange(2)), routes=swap_routes(small.unet, columns=3))
    found, expected = mine.answer(routed), torchs.answer(routed)
    assert far([found.eps, found.word_maps], [expected.eps, expected.word_maps]) < 1e-4
    contexts = [context for each in networks for context in each._engine.contexts]
    assert sorted(context._profile for context in contexts) == [0, 0, 1]  # routes came by twos


def test_an_answer_is_its_receivers_and_outputs_lie_where_they_lay(small, networks):
    (network, _), first = networks, inputs_of(small, 2, 1)
    found = network(first)
    kept = [each.clone() for each in found]
    network(inputs_of(small, 2, 2))
    assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True))
    (context,) = network._engine.contexts
    places = [[run[name] for name in ("prediction", "word_maps")] for run in context.seen]
    assert places[0] == places[1]
    assert not {each.data_ptr() for each in found} & set(places[0])


def test_strided_and_doubly_exact_inputs_are_bound_as_the_engine_takes_them(small, networks):
    given = inputs_of(small, 2, 3)
    odd = {
        **given,
        "latents": given["latents"].transpose(2, 3).contiguous().transpose(2, 3).double(),
        "donors": given["donors"].int(),
    }
    assert far(networks[0](odd), networks[0](given)) == 0


def test_shapes_share_scratch_memory_that_lives_as_long_as_any_of_them(small, networks):
    network = networks[0]
    expected = {rows: network(inputs_of(small, rows, rows)) for rows in (2, 4)}
    two, four = network._engine.contexts
    assert two.scratch[1] < four.scratch[1]
    spaces = {each.scratch.data_ptr(): each.scratch.numel() for each in network._ready.values()}
    for context in (two, four):
        assert spaces[context.scratch[0]] >= context.scratch[1]
    for rows, right in expected.items():
        assert far(network(inputs_of(small, rows, rows)), right) == 0
    assert len(network._engine.contexts) == 2


def test_threads_take_turns(small, networks):
    network, wrong = networks[0], []
    asked = [inputs_of(small, rows, seed) for seed, rows in enumerate((2, 4, 2, 4))]
    expected = [[each.clone() for each in network(inputs)] for inputs in asked]

    def work(place):
        for _ in range(4):
            if far(network(asked[place]), expected[place]) > 0:
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_what_is_in_no_profile_and_what_is_no_engine_is_refused_by_its_name(
    small, networks, tmp_path
):
    network = networks[0]
    with pytest.raises(BackendError, match=r"unet\.engine has no profile for latents \[3, 4,"):
        network(inputs_of(small, 3, 0))
    with pytest.raises(ValueError, match=r"unet\.engine takes latents, .*; got latents$"):
        network({"latents": torch.zeros(2, 4, 8, 8)})
    (tmp_path / "other.engine").write_bytes(b"text")
    with pytest.raises(BackendError, match=r"can't load other\.engine: magic tag does not match$"):
        TensorRTNetwork(tmp_path / "other.engine", Api("tensorrt_rtx", MODULE), CPU)


def test_the_golden_check_is_made_in_every_bucket_and_probes_each_layer(small, networks):
    record = replace(small.record, engine=FACTS)
    errors = denoising._errors(small.model, record, tuple(networks))
    assert set(errors) == {"unet", "unet-plain"}
    assert max(errors.values()) < 1e-4
    assert {len(each._engine.contexts) for each in networks} == {2}

    def deaf(inputs):
        return networks[0]({**inputs, "cross_gate": torch.zeros_like(inputs["cross_gate"])})

    with pytest.raises(BackendError, match="unet outside PyTorch differs from torch"):
        denoising._errors(small.model, record, (deaf, networks[1]))
    quiet = replace(record, dtype="float16")  # whose tolerance would let a weak route pass
    with pytest.raises(EditWithoutEffectError, match="ignore their route"):
        denoising.probe(small.model, deaf, quiet, FACTS.buckets)


@pytest.fixture
def loaded(small, networks, tmp_path, monkeypatch):
    """`loaded(sm, checked, **options)`: which checks a load of sealed engines makes."""

    def load(sm="89", checked=(), **options):
        facts = replace(FACTS, sm=("89", "120"), checked=checked)
        record = replace(small.record, engine=facts).with_digests(tmp_path)
        sealed(record).write(tmp_path)
        with (tmp_path / "unet.engine").open("ab") as file:
            file.write(options.pop("appended", b""))
        checks = []
        monkeypatch.setattr(denoising, "current_sm", lambda _: sm)
        monkeypatch.setattr(denoising, "_version", lambda _: "1.7")
        monkeypatch.setattr(denoising, "_networks", lambda *_: tuple(networks))
        monkeypatch.setattr(denoising, "_errors", lambda *_: checks.append(sm))
        model = SimpleNamespace(
            name="random:sd1",
            additions=[],
            fingerprint=small.model.fingerprint,
            dtype=torch.float32,
            precision=small.model.precision,
            device=torch.device("cuda"),
            autoencoder=small.model.autoencoder,
            unet=small.unet,
        )
        found = denoising.tensorrt_denoiser(model, tmp_path, **options)
        assert found.buckets == Buckets(FACTS.buckets, 16)
        return bool(checks)

    return load


def test_engines_are_compared_once_on_each_gpu_and_foreign_ones_always(loaded):
    assert loaded("89", checked=())
    assert not loaded("89", checked=("89",))
    assert loaded("120", checked=("89",))  # whose kernels nobody has compared
    foreign = {"checked": ("89",), "appended": b" "}  # its record says that it was compared
    with pytest.raises(BackendError, match="is not what was built"):
        loaded("89", **foreign)
    assert loaded("89", **foreign, allow_foreign=True)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_every_name_that_the_stand_in_has_is_tensorrts():
    real = import_module("tensorrt_rtx")
    for fake in (ICudaEngine, IExecutionContext, IRuntimeConfig, Runtime):
        names = {name for name in vars(fake) if not name.startswith("_")}
        assert names <= set(dir(getattr(real, fake.__name__)))
    for fake in (
        TensorIOMode,
        DataType,
        ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy,
        ILogger.Severity,
    ):
        mine = getattr(real, fake.__name__, None) or real.ILogger.Severity
        assert {each.name for each in fake} <= set(dir(mine))


@pytest.fixture
def gpu_networks(small, tmp_path):
    """Both of a UNet's engines for this machine's GPU, for batches of 2 and 4."""
    try:
        api = api_of()
        api.require_targets(())
    except (BackendError, ValueError) as error:
        pytest.skip(str(error))
    options, made = BuildOptions(sm=(current_sm(),), buckets=FACTS.buckets), []
    for name in ("unet", "unet-plain"):
        path = tmp_path / f"{name}.engine"
        path.write_bytes(
            build(small.folder / f"{name}.onnx", small.record.profile, 2, api, options)
        )
        made.append(TensorRTNetwork(path, api, torch.device("cuda")))
    return made


@pytest.mark.gpu
def test_an_engine_answers_as_torch_does(small, gpu_networks):
    network, part = gpu_networks[0], small.parts[0]
    inputs = part.inputs(2, 16, 16, 5)
    expected = part.module(**inputs)
    found = network({name: value.cuda() for name, value in inputs.items()})
    torch.cuda.synchronize()
    for mine, torchs in zip(found, expected, strict=True):
        assert (mine.cpu() - torchs).abs().max() < 1e-4 * torchs.abs().max()


@pytest.mark.gpu
def test_calls_on_two_streams_and_in_two_sizes_do_not_touch_each_other(small, gpu_networks):
    """Contexts share scratch memory; each answer must be the one its own call would get alone."""
    network, part = gpu_networks[0], small.parts[0]
    asked = [
        {name: value.cuda() for name, value in part.inputs(rows, 16, 16, rows).items()}
        for rows in (2, 4)
    ]
    alone = [[each.clone() for each in network(inputs)] for inputs in asked]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in asked]
    for _ in range(20):
        found = []
        for stream, inputs in zip(streams, asked, strict=True):
            with torch.cuda.stream(stream):
                found.append(network(inputs))
        torch.cuda.synchronize()
        for mine, expected in zip(found, alone, strict=True):
            for one, other in zip(mine, expected, strict=True):
                assert torch.equal(one, other)
    scratch = {each.scratch.data_ptr() for each in network._ready.values()}
    assert len(scratch) <= 2


@pytest.mark.gpu
def test_a_captured_enqueue_is_replayed_on_later_queries(small, latents, prompts, gpu_networks):
    cuda = torch.device("cuda")
    exported = ExportedDenoiser("tensorrt", *gpu_networks, small.record, scale=2)
    graphed, torchs = GraphedDenoiser(exported, cuda), small.torch()
    found = []
    for seed in range(4):
        query = Denoise(
            latents(2, seed=seed, dtype=torch.float32).cuda(),
            torch.tensor([5.0, 700.0]),
            torch.tensor([0.9, 0.2], dtype=torch.float64),
            prompts(2, seed=seed, dtype=torch.float32),
        )
        ready = {shapes: id(each.context) for shapes, each in gpu_networks[1]._ready.items()}
        found.append((graphed.answer(query).eps, torchs.answer(query.to(torch.device("cpu"))).eps))
    assert ready == {s: id(each.context) for s, each in gpu_networks[1]._ready.items()}
    assert len(graphed._buffers) == 1
    torch.cuda.synchronize()
    for mine, right in found:
        assert (mine.cpu() - right).abs().max() < 1e-4 * right.abs().max()
