"""The Triton kernels: on a GPU, or on the CPU in Triton's interpreter (test_interpreter.py)."""

import os

import pytest
import torch

from pivotal_kernels.guided_step import guided_step, noise_residual
from pivotal_kernels.guided_step.op import guided_step_op, noise_residual_op
from pivotal_kernels.testing import assert_as_exact, guided_step_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
TYPES = ["epsilon", "v_prediction", "sample"]
SIZES = [(1, 1, 1), (4, 8, 8), (4, 33, 37), (3, 1, 1000)]  # a program takes 1024 elements


def inputs_of(generator, **options):
    return guided_step_inputs(generator, **options).mapped(lambda tensor: tensor.to(DEVICE))


def stepped(inputs, kind, impl):
    return guided_step(**inputs.arguments(), prediction_type=kind, impl=impl)


def residual(inputs, kind, impl):
    return noise_residual(*residual_arguments(inputs, kind), impl=impl)


def residual_arguments(inputs, kind):
    return (
        inputs.prediction,
        inputs.latents,
        inputs.alpha_bar,
        inputs.guidance_scale,
        inputs.offset,
        kind,
    )


def against_oracle(run, inputs, kind):
    actual = run(inputs, kind, "triton")
    plain = run(inputs, kind, "reference")
    exact = run(inputs.double(), kind, "reference")
    for name in actual._fields:
        if name == "loss":  # a few numbers, too few for the oracle's statistics
            torch.testing.assert_close(actual.loss.double(), exact.loss, rtol=1e-6, atol=0)
            continue
        assert_as_exact(*(getattr(found, name) for found in (actual, plain, exact)), name)


@pytest.mark.parametrize("run", [stepped, residual])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_kind_and_dtype_is_as_exact_as_plain_torch(generator, run, kind, dtype):
    against_oracle(run, inputs_of(generator, dtype=dtype), kind)


@pytest.mark.parametrize("run", [stepped, residual])
@pytest.mark.parametrize("kind", TYPES)
def test_float64_latents_are_stepped_in_float64(generator, run, kind):
    inputs = inputs_of(generator, dtype=torch.float64)
    actual, plain = (run(inputs, kind, impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(tuple(actual), tuple(plain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("run", [stepped, residual])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_as_exact_as_plain_torch(generator, run, size):
    channels, height, width = size
    inputs = inputs_of(generator, channels=channels, height=height, width=width)
    against_oracle(run, inputs, "v_prediction")


@pytest.mark.parametrize("run", [stepped, residual])
def test_strides_are_followed(generator, run):
    inputs = inputs_of(generator)
    strided = inputs.strided()
    plain = strided.mapped(lambda t: t.clone(memory_format=torch.contiguous_format))
    assert not any(tensor.is_contiguous() for tensor in strided.arguments().values())
    answers = (run(given, "sample", "triton") for given in (strided, plain))
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()


@pytest.mark.parametrize("without", ["guidance", "offset", "both"])
def test_what_is_left_out_is_not_done(generator, without):
    arguments = inputs_of(generator).arguments()
    if without != "offset":
        arguments |= {"uncond": None, "guidance_scale": None}
    if without != "guidance":
        arguments["offset"] = None
    one, other = (
        guided_step(**arguments, prediction_type="epsilon", impl=impl)
        for impl in ("triton", "reference")
    )
    torch.testing.assert_close(tuple(one), tuple(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_a_level_like_another(generator, kind):
    inputs = inputs_of(generator)
    inputs.alpha_bar[0] = 0
    against_oracle(stepped, inputs, kind)
    against_oracle(residual, inputs, kind)


def test_no_rows_are_no_work(generator):
    inputs = inputs_of(generator).select(torch.tensor([], dtype=torch.int64, device=DEVICE))
    assert stepped(inputs, "epsilon", "triton").latents.shape == (0, 4, 5, 7)


def test_gradients_of_a_step_are_the_references(generator):
    inputs = inputs_of(generator, dtype=torch.float64)

    def gradients(impl):
        given = {name: tensor.clone() for name, tensor in inputs.arguments().items()}
        variables = [given[name].requires_grad_() for name in given]
        found = guided_step(**given, prediction_type="v_prediction", impl=impl)
        loss = found.latents.square().sum() + found.eps.sum() + found.x0.pow(3).sum()
        return torch.autograd.grad(loss, variables)

    torch.testing.assert_close(gradients("triton"), gradients("reference"), rtol=1e-10, atol=1e-10)


def test_the_operators_are_registered_as_torch_asks(generator):
    inputs = inputs_of(generator, rows=2).strided()
    arguments = inputs.arguments()
    guidance = [arguments.pop(name) for name in ("uncond", "guidance_scale", "offset")]
    torch.library.opcheck(noise_residual_op, residual_arguments(inputs, "epsilon"))
    inputs.prediction.requires_grad_()
    torch.library.opcheck(guided_step_op, (*arguments.values(), "sample", *guidance))


def test_both_compile_whole(generator):
    inputs = inputs_of(generator)

    def run(inputs):
        return (*stepped(inputs, "sample", "triton"), *residual(inputs, "sample", "triton"))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), run(inputs), rtol=0, atol=0)
