import math

import pytest
import torch

from pivotal.query import Noise
from pivotal.sampling import steps
from pivotal.schedule import NoiseLevel
from pivotal_kernels.guided_step import guided_step, noise_residual
from pivotal_kernels.testing import guided_step_inputs

TYPES = ("epsilon", "v_prediction", "sample")


def by_hand(inputs, kind):
    """The contract in float64, one row at a time, with Python's numbers for coefficients."""
    latents, eps, x0 = [], [], []
    for row in range(inputs.latents.shape[0]):
        signal, spread = levels(inputs.alpha_bar[row])
        z = inputs.latents[row].double()
        guided = []
        for prediction in (inputs.uncond, inputs.prediction):
            p = prediction[row].double()
            guided.append(
                {
                    "epsilon": (p, (z - spread * p) / signal),
                    "v_prediction": (spread * z + signal * p, signal * z - spread * p),
                    "sample": ((z - signal * p) / spread, p),
                }[kind]
            )
        weight = inputs.guidance_scale[row].item()
        noise, clean = ((1 - weight) * u + weight * c for u, c in zip(*guided, strict=True))
        signal, spread = levels(inputs.to_alpha_bar[row])
        latents.append(signal * clean + spread * noise + inputs.offset[row].double())
        eps.append(noise)
        x0.append(clean)
    return torch.stack(latents), torch.stack(eps), torch.stack(x0)


def levels(alpha_bar):
    return math.sqrt(alpha_bar.item()), math.sqrt(1 - alpha_bar.item())


@pytest.mark.parametrize("kind", TYPES)
def test_a_guided_step_is_guidance_conversion_ddim_and_offset(generator, kind):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    found = guided_step(**inputs.arguments(), prediction_type=kind)
    torch.testing.assert_close(tuple(found), by_hand(inputs, kind), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_whatever_the_inputs(generator, kind, dtype):
    inputs = guided_step_inputs(generator, dtype=dtype)
    found = guided_step(**inputs.arguments(), prediction_type=kind)
    widened = guided_step(**inputs.float().arguments(), prediction_type=kind)
    for given, expected in zip(found, widened, strict=True):
        assert given.dtype == torch.float32
        assert torch.equal(given, expected)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_the_algorithms_compute_in_three_calls(generator, kind, dtype):
    inputs = guided_step_inputs(generator, rows=1, dtype=dtype)
    found = guided_step(**inputs.arguments(), prediction_type=kind)
    low = NoiseLevel(inputs.to_alpha_bar.item(), 0.0)
    uncond, cond = (
        Noise(*steps.eps_and_x0(prediction, inputs.latents, inputs.alpha_bar, kind))
        for prediction in (inputs.uncond, inputs.prediction)
    )
    guided = steps.guide(uncond, cond, inputs.guidance_scale.item())
    stepped = steps.ddim_step(guided, low) + inputs.offset
    assert torch.equal(found.eps, guided.eps)
    assert torch.equal(found.x0, guided.x0)
    torch.testing.assert_close(found.latents, stepped, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_rows_do_not_know_each_other(generator):
    inputs = guided_step_inputs(generator, rows=4, dtype=torch.float64)
    found = guided_step(**inputs.arguments(), prediction_type="v_prediction")
    order = torch.tensor([2, 0, 3, 1])
    shuffled = guided_step(**inputs.select(order).arguments(), prediction_type="v_prediction")
    for given, expected in zip(shuffled, found, strict=True):
        assert torch.equal(given, expected[order])


def test_without_guidance_and_offset_it_is_a_plain_ddim_step(generator):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    plain = guided_step(
        inputs.prediction, inputs.latents, inputs.alpha_bar, inputs.to_alpha_bar, "epsilon"
    )
    neutral = guided_step(
        **inputs.arguments()
        | {"guidance_scale": torch.ones(3).double(), "offset": torch.zeros_like(inputs.offset)},
        prediction_type="epsilon",
    )
    torch.testing.assert_close(tuple(plain), tuple(neutral), rtol=1e-12, atol=1e-12)


def test_to_the_level_it_is_at_a_step_stands_still(generator):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    for kind in TYPES:
        still = guided_step(
            inputs.prediction, inputs.latents, inputs.alpha_bar, inputs.alpha_bar, kind
        )
        torch.testing.assert_close(still.latents, inputs.latents, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", TYPES)
def test_the_residuals_gradients_are_autograds(generator, kind):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    scale = torch.tensor([2.0, 0.0, -0.3], dtype=torch.float64)
    found = noise_residual(
        inputs.prediction, inputs.latents, inputs.alpha_bar, scale, inputs.offset, kind
    )
    prediction, latents = (t.clone().requires_grad_() for t in (inputs.prediction, inputs.latents))
    eps, _ = steps.eps_and_x0(prediction, latents, inputs.alpha_bar, kind)
    loss = (scale[:, None, None, None] * eps + inputs.offset).square().mean(dim=(1, 2, 3))
    expected = torch.autograd.grad(
        loss.sum(), (prediction, latents), allow_unused=True, materialize_grads=True
    )
    torch.testing.assert_close(found.eps, eps.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tuple(found[2:]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_both_compile_whole(generator, impl):
    inputs = guided_step_inputs(generator)

    def run(inputs):
        stepped = guided_step(**inputs.arguments(), prediction_type="v_prediction", impl=impl)
        residual = noise_residual(
            inputs.prediction,
            inputs.latents,
            inputs.alpha_bar,
            inputs.guidance_scale,
            inputs.offset,
            "v_prediction",
            impl=impl,
        )
        return (*stepped, *residual)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), run(inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prediction_type": "eps"}, "prediction_type='eps' is unknown; accepted are epsilon, v_"),
        ({"uncond": None}, "guidance_scale is given alone"),
        ({"guidance_scale": None}, "uncond is given alone"),
        ({"latents": torch.zeros(3, 4)}, r"latents have shape \[3, 4\]"),
        ({"offset": torch.zeros(3, 4, 5, 6)}, r"offset has shape \[3, 4, 5, 6\]; \[3, 4, 5, 7\]"),
        ({"alpha_bar": torch.zeros(2)}, r"alpha_bar has shape \[2\]; \[3\] fits latents"),
        ({"offset": torch.zeros(3, 4, 5, 7, device="meta")}, "offset is on meta where latents are"),
        ({"impl": "fast"}, "impl='fast' is unknown; accepted are auto, reference, triton"),
        ({"impl": "triton"}, "does not fit torch.float32 on cpu in guided_step: triton needs a CU"),
    ],
)
def test_what_does_not_fit_is_named(generator, change, sentence):
    inputs = guided_step_inputs(generator)
    with pytest.raises(ValueError, match=sentence):
        guided_step(**inputs.arguments() | {"prediction_type": "epsilon"} | change)


def test_a_residual_of_tensors_with_gradients_is_refused(generator):
    inputs = guided_step_inputs(generator)
    with pytest.raises(ValueError, match="latents requires a gradient; noise_residual takes detac"):
        noise_residual(
            inputs.prediction,
            inputs.latents.requires_grad_(),
            inputs.alpha_bar,
            inputs.guidance_scale,
            inputs.offset,
            "epsilon",
        )
