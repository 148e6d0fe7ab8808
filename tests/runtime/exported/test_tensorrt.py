"""TensorRT engines: built for GPUs that are not here, and refused where they do not fit."""

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from pivotal.errors import BackendError
from pivotal.runtime.exported.profile import ShapeProfile, Span
from pivotal.runtime.exported.record import EngineFacts, read_record
from pivotal.runtime.exported.tensorrt_api import FLAVOURS, RTX_TARGETS, Api, api_of, current_sm
from pivotal.runtime.exported.tensorrt_build import (
    BuildOptions,
    _timing_cache,
    build,
    build_engines,
    profiles,
)
from pivotal.runtime.exported.tensorrt_denoiser import is_ours, require_machine, weights_for

ALLOWED_BY = r"\(--allow-foreign-engine\)$"
rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX (extra tensorrt-rtx) is not installed"
)
FACTS = EngineFacts("tensorrt_rtx", "1.7", ("89", "120"), (2, 4), False, False, ())


@rtx
def test_one_engine_is_built_for_two_gpus_without_either(small, tmp_path):
    phases = []
    options = BuildOptions(sm=("89", "120"), buckets=(2,), workspace=2**28)
    folder = tmp_path / "engines"
    folder.mkdir()
    record = build_engines(
        small.model, small.folder, folder, api_of("tensorrt_rtx"), options, told=phases.append
    )
    assert record.engine.sm == ("89", "120")
    assert record.engine.version == api_of("tensorrt_rtx").version
    assert record.engine.checked == ()  # there is no such GPU here
    assert {"unet.engine", "unet-plain.engine"} == set(record.files)
    assert any(phase.startswith("unet: ") for phase in phases)
    for name in record.files:
        plan = (folder / name).read_bytes()
        assert b"sm89" in plan
        assert b"sm120" in plan
        assert b"sm86" not in plan
    assert read_record(folder) == record
    assert is_ours(record, folder, allow_foreign=False)
    with (folder / "unet.engine").open("ab") as file:
        file.write(b"\0")
    changed = rf"unet\.engine' is not what was built; .* `pivotal export tensorrt .*{ALLOWED_BY}"
    with pytest.raises(BackendError, match=changed):
        is_ours(record, folder, allow_foreign=False)
    assert not is_ours(record, folder, allow_foreign=True)
    (folder / "unet.engine").unlink()
    with pytest.raises(BackendError, match=r"unet\.engine' is missing; build again"):
        is_ours(record, folder, allow_foreign=True)


@rtx
def test_a_build_that_is_stopped_leaves_no_engine(small):
    with pytest.raises(KeyboardInterrupt):
        build(
            small.folder / "unet-plain.onnx",
            small.record.profile,
            2,
            api_of("tensorrt_rtx"),
            BuildOptions(sm=("89",), buckets=(2,)),
            stop=lambda: True,
        )


@rtx
def test_what_a_listener_of_a_build_raises_ends_it_and_is_raised_again(small, capfd):
    told = []

    def broken(phase):
        told.append(phase)
        if len(told) == 3:
            raise OSError("nobody listens")

    with pytest.raises(OSError, match="nobody listens"):
        build(
            small.folder / "unet-plain.onnx",
            small.record.profile,
            2,
            api_of("tensorrt_rtx"),
            BuildOptions(sm=("89",), buckets=(2,)),
            told=broken,
        )
    assert len(told) == 3
    assert not capfd.readouterr().err  # where TensorRT prints exceptions that it swallows


@rtx
def test_the_targets_that_are_accepted_are_tensorrt_rtxs():
    known = dir(api_of("tensorrt_rtx").module.ComputeCapability)
    assert set(RTX_TARGETS) == {name[2:] for name in known if name.startswith("SM")}


@rtx
def test_what_is_no_onnx_file_is_refused_by_its_name(tmp_path):
    (tmp_path / "unet.onnx").write_bytes(b"nothing")
    fixed = Span(8, 8)
    with pytest.raises(BackendError, match=r"tensorrt_rtx can't read unet\.onnx"):
        build(
            tmp_path / "unet.onnx",
            ShapeProfile(Span(1, 2), fixed, fixed),
            1,
            api_of("tensorrt_rtx"),
            BuildOptions(sm=("89",), buckets=(2,)),
        )


def test_each_bucket_is_a_profile_whose_rows_are_fixed_and_whose_sides_may_vary():
    inputs = [
        SimpleNamespace(name="latents", shape=(-1, 4, -1, -1)),
        SimpleNamespace(name="donors", shape=(-1,)),
        SimpleNamespace(name="self_keys", shape=(3, -1)),
    ]
    network = SimpleNamespace(num_inputs=3, get_input=inputs.__getitem__)
    profile = ShapeProfile(Span(1, 8), Span(512, 1024), Span(512, 512))
    assert list(profiles(network, profile, (2, 8), 8)) == [
        {
            "latents": ((rows, 4, 64, 64), (rows, 4, 128, 64)),
            "donors": ((rows,), (rows,)),
            "self_keys": ((3, rows), (3, rows)),
        }
        for rows in (2, 8)
    ]


@pytest.mark.parametrize(
    ("sm", "version", "sentence"),
    [
        (None, "1.7", "no CUDA device here"),
        (
            "86",
            "1.7",
            "this GPU is sm 86; build again: `pivotal export tensorrt .* --flavour tensorrt_rtx "
            "--sm 86 --bucket 2 --bucket 4 --height 16 --width 16 -o",
        ),
        ("89", "1.8", "1.8 is installed; build again: `pivotal export tensorrt"),
        ("89", None, r"pip install 'pivotal\[tensorrt-rtx\]'"),
    ],
)
def test_an_engine_of_another_machine_is_refused_with_what_rebuilds_it(
    small, sm, version, sentence
):
    record = replace(small.record, engine=FACTS)
    with pytest.raises(BackendError, match=sentence):
        require_machine(record, FACTS, Path("there"), sm, version)


def test_an_engine_of_this_machine_is_taken(small):
    require_machine(replace(small.record, engine=FACTS), FACTS, Path("there"), "120", "1.7")


def test_targets_are_checked_before_anything_is_exported():
    api = Api("tensorrt_rtx", None)
    api.require_targets(("75", "121"))
    with pytest.raises(ValueError, match="can't build for sm 90; accepted are 75, 80"):
        api.require_targets(("90",))
    with pytest.raises(ValueError, match="names a target twice"):
        api.require_targets(("89", "89"))
    if current_sm() is None:
        with pytest.raises(ValueError, match="no GPU to build for"):
            api.require_targets(())
        with pytest.raises(ValueError, match="for this machine's GPU alone"):
            Api("tensorrt", None).require_targets(("89",))


def test_a_flavour_that_is_unknown_or_absent_is_named():
    with pytest.raises(ValueError, match="flavour='trt' is unknown"):
        api_of("trt")
    for name in FLAVOURS:
        if find_spec(name) is None:
            with pytest.raises(BackendError, match=f"{name} is not installed"):
                api_of(name)


def test_build_options_are_checked_when_made():
    with pytest.raises(ValueError, match="ascending"):
        BuildOptions(buckets=(4, 2))
    with pytest.raises(ValueError, match="workspace=0"):
        BuildOptions(workspace=0)


def test_engines_take_other_weights_only_where_refittable_and_of_their_architecture(
    small, tmp_path
):
    record = replace(small.record, engine=FACTS)
    refittable = replace(FACTS, refittable=True)
    stripped = replace(FACTS, stripped=True)
    assert weights_for(record, refittable, tmp_path) is None  # they have their own
    with pytest.raises(BackendError, match=r"there is no folder .*onnx'"):
        weights_for(record, stripped, tmp_path)
    onnx = shutil.copytree(small.folder, tmp_path / "onnx")
    assert weights_for(record, FACTS, tmp_path) is None
    assert weights_for(record, stripped, tmp_path) == small.record
    other = replace(small.record, fingerprint="0" * 64)
    other.write(onnx)
    assert weights_for(record, refittable, tmp_path) == other
    assert weights_for(record, replace(stripped, refittable=True), tmp_path) == other
    with pytest.raises(BackendError, match="alone; build them with --refit too"):
        weights_for(record, stripped, tmp_path)  # TensorRT would take any, and compute nonsense
    replace(other, prediction_type="sample").write(onnx)
    with pytest.raises(BackendError, match="prediction_type sample, the engines beside it epsilon"):
        weights_for(record, refittable, tmp_path)
    other.write(onnx)
    with (onnx / "unet.weights").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BackendError, match="not the file that was exported"):
        weights_for(record, refittable, tmp_path)


class Timings:
    """What TensorRT's builder config does with a timing cache."""

    def __init__(self, taken=True):
        self.taken, self.given = taken, None

    def create_timing_cache(self, content):
        self.given = content
        return SimpleNamespace(serialize=lambda: content + b"more")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        return self.taken


def test_a_timing_cache_is_read_where_there_is_one_and_refused_where_it_is_anothers(tmp_path):
    config = Timings()
    _timing_cache(config, tmp_path / "none")
    assert config.given == b""
    (tmp_path / "some").write_bytes(b"timed")
    assert _timing_cache(config, tmp_path / "some").serialize() == b"timedmore"
    with pytest.raises(BackendError, match="no timing cache of this TensorRT and GPU"):
        _timing_cache(Timings(taken=False), tmp_path / "some")


def test_a_timing_cache_is_checked_before_anything_is_exported(tmp_path):
    cache = BuildOptions(sm=("89",), timing_cache=tmp_path / "timings")
    with pytest.raises(ValueError, match="means nothing for tensorrt_rtx"):
        cache.require(Api("tensorrt_rtx", None))
