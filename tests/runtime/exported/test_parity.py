"""Every backend against eager torch: what a user gets, in latents and in decibels.

In float32 they agree. In half precision each rounds on its own, so both are compared with float64
on the same weights: a backend's error may be at most twice eager torch's own, and that stays small.
"""

import math
import os
import shutil

import pytest
import torch

from pivotal.engine import Engine
from pivotal.errors import EditWithoutEffectError
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.compiled_denoiser import CompiledDenoiser
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.exported.backend import denoiser_of
from pivotal.runtime.exported.float32_copy import float32_copy
from pivotal.runtime.exported.tensorrt_api import api_of, current_sm
from pivotal.runtime.exported.tensorrt_build import BuildOptions, build_engines
from pivotal.runtime.torch_denoiser import TorchDenoiser

SOURCE, TARGET = "a red star", "a blue star"
ALLOWED = {
    # of the largest latent, after all steps; decibels of all latents: in float32 between the two,
    # in half precision of eager torch against float64
    "float32": (1e-4, 80),
    "float16": (2e-2, 40),
    "bfloat16": (1e-1, 22),
}
TIMES = 2  # eager torch's own error, in half precision
CASES = [
    pytest.param("onnx", "float32", "cpu"),
    pytest.param("onnx", "float16", "cpu", marks=pytest.mark.slow),
    pytest.param("compiled", "float32", "cpu", marks=pytest.mark.slow),
    pytest.param("compiled", "bfloat16", "cpu", marks=pytest.mark.slow),
    *[
        pytest.param(backend, dtype, "cuda", marks=pytest.mark.gpu)
        for backend in ("onnx", "compiled", "tensorrt")
        for dtype in ALLOWED
        if (backend, dtype) != ("onnx", "bfloat16")
    ],
]


def compiled(engine):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("compiling for a CPU needs g++")
    return CompiledDenoiser(engine.denoiser, CompileOptions(Buckets((4,))))


def tensorrt(model, onnx, folder):
    try:
        api = api_of()
        api.require_targets(())
    except Exception as error:
        pytest.skip(str(error))
    build_engines(model, onnx, folder, api, BuildOptions(sm=(current_sm(),), buckets=(2, 4)))
    return denoiser_of("tensorrt", model, folder, pytest.fail)


@pytest.fixture(scope="module")
def made(tiny_model, small, export_unet, tmp_path_factory):
    """`made(backend, dtype, device)`: engines on one model, by that backend and by eager torch; in
    half precision by eager torch in float64 too.
    """
    known = {}

    def make(backend, dtype, device):
        key = (backend, dtype, device)
        if key not in known:
            model = tiny_model("sd1", dtype, device)
            eager = Engine(model)
            if backend == "compiled":
                other = compiled(eager)
            else:
                of_cpu = (dtype, device) == ("float32", "cpu")
                folder = (small if of_cpu else export_unet(model)).folder
                other = (
                    tensorrt(model, folder, tmp_path_factory.mktemp("engines"))
                    if backend == "tensorrt"
                    else denoiser_of(backend, model, folder, pytest.fail)
                )
            known[key] = [Engine(model, other), eager]
            if dtype != "float32":
                exact = float32_copy(model.unet).double()
                kind = model.levels.config.prediction_type
                known[key].append(Engine(model, TorchDenoiser(exact, kind)))
        return known[key]

    return make


def error(found, right):
    """The largest, over the largest latent; and all of it in decibels."""
    missed, right = (found - right).double(), right.double()
    share = right.square().mean() / missed.square().mean().clamp(min=1e-30)
    return (missed.abs().max() / right.abs().max()).item(), 10 * share.log10().item()


def agree(mine, torchs, exact=None, *, dtype):
    largest, decibels = error(mine, torchs) if exact is None else error(torchs, exact)
    assert largest <= ALLOWED[dtype][0]
    assert decibels >= ALLOWED[dtype][1]
    if exact is not None:
        own, own_decibels = error(mine, exact)
        assert own <= TIMES * largest
        assert own_decibels >= decibels - 20 * math.log10(TIMES)


@pytest.fixture(scope="module")
def picture():
    generator = torch.Generator().manual_seed(4)
    return torch.rand(3, 16, 16, generator=generator)


@pytest.mark.parametrize(("backend", "dtype", "device"), CASES)
def test_inversion_edit_with_local_blend_and_guided_sample_are_eagers(
    made, picture, backend, dtype, device
):
    engines = made(backend, dtype, device)
    asked = {"method": "ddim", "num_inference_steps": 3}
    noises = [each.invert(picture, SOURCE, **asked).inverted.noise for each in engines]
    agree(*noises, dtype=dtype)
    eager = engines[1]
    inversion = eager.invert(picture, SOURCE, method="direct", num_inference_steps=3)
    edits = [each.edit(inversion, TARGET, blend=("star",)) for each in engines]
    agree(*(each.latents for each in edits), dtype=dtype)
    assert edits[0].touched == edits[1].touched
    narrower = eager.edit(inversion, TARGET, blend=("star",), self_replace_steps=0.0)
    assert error(narrower.latents, edits[1].latents)[0] > 10 * ALLOWED["float32"][0]
    samples = [
        each.generate(TARGET, num_inference_steps=3, seed=3, output_type="latent").images
        for each in engines
    ]
    agree(*samples, dtype=dtype)


def test_the_first_edit_is_refused_where_a_layer_outside_torch_ignores_its_route(
    made, small, picture
):
    sound, eager = made("onnx", "float32", "cpu")
    inversion = eager.invert(picture, SOURCE, method="direct", num_inference_steps=3)
    deaf = Engine(small.model, small.onnx(small.deaf))
    with pytest.raises(EditWithoutEffectError, match=small.deaf_layer):
        deaf.edit(inversion, TARGET)
    assert sound.edit(inversion, TARGET).latents.isfinite().all()
