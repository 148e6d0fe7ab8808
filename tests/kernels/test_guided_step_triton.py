"""The Triton kernels: on a GPU, or on the CPU in Triton's interpreter (test_interpreter.py)."""

import os

import pytest
import torch

from pivotal.driver import drive
from pivotal.inversion import null_text
from pivotal.query import Noise
from pivotal.sampling import steps
from pivotal.schedule import NoiseLevel
from pivotal_kernels.backends import Facts
from pivotal_kernels.guided_step import api, eps_and_x0, guide, guided_step, noise_residual
from pivotal_kernels.guided_step.op import eps_and_x0_op, guided_step_op, noise_residual_op
from pivotal_kernels.testing import assert_as_exact, guided_step_inputs, prediction_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
TYPES = ["epsilon", "v_prediction", "sample"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 1, 1), (4, 8, 8), (4, 33, 37), (3, 1, 1000)]  # a program takes 1024 elements


def step_inputs(generator, **options):
    return guided_step_inputs(generator, **options).mapped(lambda tensor: tensor.to(DEVICE))


def predicted_inputs(generator, **options):
    return prediction_inputs(generator, **options).mapped(lambda tensor: tensor.to(DEVICE))


def stepped(inputs, kind, impl):
    return guided_step(**inputs.step(), impl=impl)


def converted(inputs, kind, impl):
    return eps_and_x0(inputs.prediction, inputs.latents, inputs.alpha_bar, kind, impl=impl)


def residual(inputs, kind, impl):
    return noise_residual(*residual_arguments(inputs, kind), impl=impl)


def residual_arguments(inputs, kind):
    return (inputs.prediction, inputs.latents, inputs.alpha_bar, inputs.scale, inputs.offset, kind)


RUNS = [(stepped, step_inputs), (converted, predicted_inputs), (residual, predicted_inputs)]
each_op = pytest.mark.parametrize(("run", "inputs_of"), RUNS)
each_with_types = pytest.mark.parametrize(
    ("run", "inputs_of", "kind"),
    [(stepped, step_inputs, None)]
    + [(run, inputs_of, kind) for run, inputs_of in RUNS[1:] for kind in TYPES],
)


def against_oracle(run, inputs, kind):
    actual = run(inputs, kind, "triton")
    plain = run(inputs, kind, "reference")
    exact = run(inputs.double(), kind, "reference")
    names = getattr(actual, "_fields", ("eps", "x0"))
    for name, *found in zip(names, actual, plain, exact, strict=True):
        if name == "loss":  # a few numbers, too few for the oracle's statistics
            torch.testing.assert_close(actual.loss.double(), exact.loss, rtol=1e-6, atol=0)
            continue
        assert_as_exact(*found, name)


@each_with_types
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_and_dtype_is_as_exact_as_plain_torch(generator, run, inputs_of, kind, dtype):
    against_oracle(run, inputs_of(generator, dtype=dtype), kind)


@each_with_types
def test_float64_latents_are_stepped_in_float64(generator, run, inputs_of, kind):
    inputs = inputs_of(generator, dtype=torch.float64)
    actual, plain = (run(inputs, kind, impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(tuple(actual), tuple(plain), rtol=1e-12, atol=1e-12)


@each_op
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_as_exact_as_plain_torch(generator, run, inputs_of, size):
    channels, height, width = size
    inputs = inputs_of(generator, channels=channels, height=height, width=width)
    against_oracle(run, inputs, "v_prediction")


@each_op
def test_strides_are_followed(generator, run, inputs_of):
    strided = inputs_of(generator).strided()
    plain = strided.mapped(lambda t: t.clone(memory_format=torch.contiguous_format))
    assert not any(tensor.is_contiguous() for tensor in strided.arguments().values())
    answers = (run(given, "sample", "triton") for given in (strided, plain))
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()


@pytest.mark.parametrize("without", ["guidance", "offset", "both"])
def test_what_is_left_out_is_not_done(generator, without):
    arguments = step_inputs(generator).step()
    if without != "offset":
        arguments |= {"uncond": None, "guidance_scale": None}
    if without != "guidance":
        arguments["offset"] = None
    one, other = (guided_step(**arguments, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(tuple(one), tuple(other), rtol=1e-5, atol=1e-5)


def test_guidance_alone_is_the_steps_own(generator):
    inputs = step_inputs(generator)
    pairs = (inputs.uncond_eps, inputs.uncond_x0), (inputs.eps, inputs.x0)
    alone = guide(*pairs, inputs.guidance_scale, impl="triton")
    whole = stepped(inputs, None, "triton")
    assert torch.equal(alone[0], whole.eps)
    assert torch.equal(alone[1], whole.x0)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_a_level_like_another(generator, kind):
    inputs = predicted_inputs(generator)
    inputs.alpha_bar[0] = 0
    against_oracle(converted, inputs, kind)
    against_oracle(residual, inputs, kind)
    up = step_inputs(generator)
    up.to_alpha_bar[0] = 0
    against_oracle(stepped, up, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_algorithms_call_is_the_kernel_and_as_exact(generator, dtype):
    """Low noise levels and high ones, where x0 follows from eps with a large factor."""
    assert api._settled("guided_step", "auto", Facts(DEVICE, dtype)) == "triton"
    inputs = step_inputs(generator, dtype=dtype)

    def found(inputs, alpha_bar, auto):
        pairs = (inputs.uncond_eps, inputs.uncond_x0), (inputs.eps, inputs.x0)
        if not auto:
            return guided_step(
                *pairs[1], alpha_bar, uncond=pairs[0], guidance_scale=7.5, impl="reference"
            )
        latents, noise = steps.guided_step(
            Noise(*pairs[0]), Noise(*pairs[1]), 7.5, NoiseLevel(alpha_bar, 0.0)
        )
        alone = steps.ddim_step(noise, NoiseLevel(alpha_bar, 0.0))
        torch.testing.assert_close(alone, latents, rtol=1e-6, atol=1e-6)
        return latents, noise.eps, noise.x0

    for alpha_bar in (0.0047, 0.3, 0.9991, 1.0):
        actual, plain = (found(inputs, alpha_bar, auto) for auto in (True, False))
        exact = found(inputs.double(), alpha_bar, auto=False)
        for each in zip(actual, plain, exact, strict=True):
            assert_as_exact(*each)


def test_null_text_by_kernels_is_null_text(torch_denoiser, levels, latents, prompts, monkeypatch):
    """A whole fit, its steps and residuals by the kernels, against the reference's."""
    denoiser = torch_denoiser("v_prediction")
    denoiser.unet.to(DEVICE)
    denoiser.device = torch.device(DEVICE)
    options = null_text.NullTextOptions(inner_steps=2)
    asked = (latents(1).to(DEVICE), prompts(1).to(DEVICE), prompts(1, seed=5).to(DEVICE), options)

    def fitted():
        api._settled.cache_clear()
        return drive(null_text.invert(levels.schedule(2), *asked), denoiser)

    by_kernels = fitted()
    monkeypatch.setattr(api, "PREFERENCE", ("reference",))
    plain = fitted()
    api._settled.cache_clear()
    torch.testing.assert_close(by_kernels.noise, plain.noise, rtol=1e-9, atol=1e-9)
    found, expected = (each.stored["null_embeddings"] for each in (by_kernels, plain))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_no_rows_are_no_work(generator):
    nothing = torch.tensor([], dtype=torch.int64, device=DEVICE)
    assert stepped(step_inputs(generator).select(nothing), None, "triton").latents.shape[0] == 0
    eps, _ = converted(predicted_inputs(generator).select(nothing), "epsilon", "triton")
    assert eps.shape == (0, 4, 5, 7)


def test_gradients_are_the_references(generator):
    inputs = step_inputs(generator, dtype=torch.float64)
    predicted = predicted_inputs(generator, dtype=torch.float64)

    def gradients(impl):
        given = inputs.mapped(lambda tensor: tensor.clone().requires_grad_())
        asked = predicted.mapped(lambda tensor: tensor.clone().requires_grad_())
        found = guided_step(**given.step(), impl=impl)
        plain = guided_step(given.eps, given.x0, given.to_alpha_bar, impl=impl)
        eps, x0 = converted(asked, "v_prediction", impl)
        loss = found.latents.square().sum() + found.eps.sum() + found.x0.pow(3).sum()
        loss = loss + plain.latents.pow(3).sum() + (eps * x0).sum()
        variables = [*given.arguments().values(), asked.prediction, asked.latents, asked.alpha_bar]
        return torch.autograd.grad(loss, variables)

    torch.testing.assert_close(gradients("triton"), gradients("reference"), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "checks",
    [
        ("test_schema", "test_autograd_registration", "test_faketensor"),
        pytest.param("test_aot_dispatch_dynamic", marks=pytest.mark.slow),
    ],
)
def test_the_operators_are_registered_as_torch_asks(generator, checks):
    def check(op, arguments):
        torch.library.opcheck(op, arguments, test_utils=checks)

    predicted = predicted_inputs(generator, rows=2).strided()
    check(noise_residual_op, residual_arguments(predicted, "epsilon"))
    predicted.prediction.requires_grad_()
    asked = (predicted.prediction, predicted.latents, predicted.alpha_bar)
    check(eps_and_x0_op, (*asked, "sample"))
    inputs = step_inputs(generator, rows=2).strided()
    inputs.eps.requires_grad_()
    check(guided_step_op, list(inputs.arguments().values()))


@pytest.mark.slow
def test_an_operator_without_some_of_its_tensors_is_registered_too(generator):
    inputs = step_inputs(generator, rows=2).strided()
    inputs.eps.requires_grad_()
    given = list(inputs.arguments().values())
    torch.library.opcheck(guided_step_op, (*given[:3], None, None, None, None))
    torch.library.opcheck(guided_step_op, (*given[:2], None, *given[3:6], None))


def test_all_compile_whole(generator):
    inputs, predicted = step_inputs(generator), predicted_inputs(generator)

    def run(inputs, predicted):
        found = (*stepped(inputs, None, "triton"), *residual(predicted, "sample", "triton"))
        return (*found, *converted(predicted, "sample", "triton"))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(inputs, predicted), run(inputs, predicted)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
