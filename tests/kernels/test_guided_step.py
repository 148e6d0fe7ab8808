import math

import pytest
import torch

from pivotal.query import Noise
from pivotal.sampling import steps
from pivotal.schedule import NoiseLevel
from pivotal_kernels import guided_step as ops
from pivotal_kernels.guided_step import eps_and_x0, guide, guided_step, noise_residual
from pivotal_kernels.guided_step.api import PREFERENCE
from pivotal_kernels.testing import guided_step_inputs, prediction_inputs

TYPES = ("epsilon", "v_prediction", "sample")


def by_hand(inputs):
    """The contract in float64, one row at a time, with Python's numbers for coefficients."""
    latents, eps, x0 = [], [], []
    for row in range(inputs.x0.shape[0]):
        weight = inputs.guidance_scale[row].item()
        noise, clean = (
            (1 - weight) * uncond[row].double() + weight * cond[row].double()
            for uncond, cond in ((inputs.uncond_eps, inputs.eps), (inputs.uncond_x0, inputs.x0))
        )
        signal, spread = levels(inputs.to_alpha_bar[row])
        latents.append(signal * clean + spread * noise + inputs.offset[row].double())
        eps.append(noise)
        x0.append(clean)
    return torch.stack(latents), torch.stack(eps), torch.stack(x0)


def converted_by_hand(inputs, kind):
    eps, x0 = [], []
    for row in range(inputs.latents.shape[0]):
        signal, spread = levels(inputs.alpha_bar[row])
        z, p = inputs.latents[row].double(), inputs.prediction[row].double()
        found = {
            "epsilon": (p, (z - spread * p) / signal),
            "v_prediction": (spread * z + signal * p, signal * z - spread * p),
            "sample": ((z - signal * p) / spread, p),
        }[kind]
        eps.append(found[0])
        x0.append(found[1])
    return torch.stack(eps), torch.stack(x0)


def levels(alpha_bar):
    return math.sqrt(alpha_bar.item()), math.sqrt(1 - alpha_bar.item())


def test_a_guided_step_is_guidance_ddim_and_offset(generator):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    found = guided_step(**inputs.step())
    torch.testing.assert_close(tuple(found), by_hand(inputs), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", TYPES)
def test_a_prediction_is_what_its_type_says(generator, kind):
    inputs = prediction_inputs(generator, dtype=torch.float64)
    found = eps_and_x0(inputs.prediction, inputs.latents, inputs.alpha_bar, kind)
    torch.testing.assert_close(found, converted_by_hand(inputs, kind), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_is_float32_whatever_the_inputs(generator, dtype):
    step = guided_step_inputs(generator, dtype=dtype)
    predicted = prediction_inputs(generator, dtype=dtype)

    def run(step, predicted):
        yield from guided_step(**step.step())
        for kind in TYPES:
            yield from eps_and_x0(
                predicted.prediction, predicted.latents, predicted.alpha_bar, kind
            )

    found = run(step, predicted)
    for given, expected in zip(found, run(step.float(), predicted.float()), strict=True):
        assert given.dtype == torch.float32
        assert torch.equal(given, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_what_the_algorithms_call_in_one_or_in_two(generator, dtype):
    inputs = guided_step_inputs(generator, rows=1, dtype=dtype)
    to, weight = inputs.to_alpha_bar.item(), inputs.guidance_scale.item()
    found = guided_step(**inputs.step() | {"to_alpha_bar": to, "guidance_scale": weight})
    low = NoiseLevel(to, 0.0)
    uncond = Noise(inputs.uncond_eps, inputs.uncond_x0)
    cond = Noise(inputs.eps, inputs.x0, word_maps=inputs.offset)
    guided = steps.guide(uncond, cond, weight)
    stepped, noise = steps.guided_step(uncond, cond, weight, low)
    assert torch.equal(stepped, steps.ddim_step(guided, low))
    assert torch.equal(stepped + inputs.offset, found.latents)
    for given in (guided, noise):
        assert torch.equal(given.eps, found.eps)
        assert torch.equal(given.x0, found.x0)
        assert given.word_maps is cond.word_maps


def test_a_number_serves_all_rows(generator):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    rows = torch.ones(3, dtype=torch.float64)
    each = guided_step(**inputs.step() | {"to_alpha_bar": 0.3 * rows, "guidance_scale": 7.5 * rows})
    one = guided_step(**inputs.step() | {"to_alpha_bar": 0.3, "guidance_scale": 7.5})
    torch.testing.assert_close(tuple(one), tuple(each), rtol=1e-14, atol=1e-14)


def test_what_the_free_functions_call_is_fused_where_it_can_be(monkeypatch, generator):
    """Their one implementation is the op's: on a GPU "auto" is Triton's kernel, here the reference.

    The choice is the op's own: no free function has arithmetic besides.
    """
    assert PREFERENCE == ("triton", "reference")
    called = []
    for name in ("guided_step", "guide", "eps_and_x0"):
        run = getattr(ops, name)
        monkeypatch.setattr(
            ops,
            name,
            lambda *a, _run=run, _name=name, **k: (called.append(_name), _run(*a, **k))[1],
        )
    inputs = guided_step_inputs(generator)
    noise, low = Noise(inputs.eps, inputs.x0), NoiseLevel(0.5, 0.0)
    steps.guide(noise, noise, 2.0)
    steps.ddim_step(noise, low)
    steps.guided_step(noise, noise, 2.0, low)
    steps.eps_and_x0(inputs.eps, inputs.x0, inputs.to_alpha_bar, "epsilon")
    assert called == ["guide", "guided_step", "guided_step", "eps_and_x0"]


def test_rows_do_not_know_each_other(generator):
    inputs = guided_step_inputs(generator, rows=4, dtype=torch.float64)
    found = guided_step(**inputs.step())
    order = torch.tensor([2, 0, 3, 1])
    shuffled = guided_step(**inputs.select(order).step())
    for given, expected in zip(shuffled, found, strict=True):
        assert torch.equal(given, expected[order])


def test_without_guidance_and_offset_it_is_a_plain_ddim_step(generator):
    inputs = guided_step_inputs(generator, dtype=torch.float64)
    plain = guided_step(inputs.eps, inputs.x0, inputs.to_alpha_bar)
    ones, zeros = torch.ones(3).double(), torch.zeros_like(inputs.offset)
    neutral = guided_step(**inputs.step() | {"guidance_scale": ones, "offset": zeros})
    torch.testing.assert_close(tuple(plain), tuple(neutral), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
def test_to_the_level_it_is_at_a_step_stands_still(generator, kind):
    inputs = prediction_inputs(generator, dtype=torch.float64)
    pair = eps_and_x0(inputs.prediction, inputs.latents, inputs.alpha_bar, kind)
    still = guided_step(*pair, inputs.alpha_bar)
    torch.testing.assert_close(still.latents, inputs.latents, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", TYPES)
def test_the_residuals_gradients_are_autograds(generator, kind):
    inputs = prediction_inputs(generator, dtype=torch.float64)
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
def test_all_compile_whole(generator, impl):
    step, predicted = guided_step_inputs(generator), prediction_inputs(generator)

    def run(step, predicted):
        asked = (predicted.prediction, predicted.latents, predicted.alpha_bar)
        stepped = guided_step(**step.step(), impl=impl)
        guided = guide((step.uncond_eps, step.uncond_x0), (step.eps, step.x0), 7.5, impl=impl)
        pair = eps_and_x0(*asked, "v_prediction", impl=impl)
        residual = noise_residual(
            *asked, predicted.scale, predicted.offset, "v_prediction", impl=impl
        )
        return (*stepped, *guided, *pair, *residual)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(step, predicted), run(step, predicted)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"uncond": None}, "guidance_scale is given alone"),
        ({"guidance_scale": None}, "uncond is given alone"),
        ({"x0": torch.zeros(3, 4)}, r"x0 has shape \[3, 4\]"),
        ({"offset": torch.zeros(3, 4, 5, 6)}, r"offset has shape \[3, 4, 5, 6\]; \[3, 4, 5, 7\]"),
        ({"uncond": (torch.zeros(3),) * 2}, r"uncond eps has shape \[3\]; \[3, 4, 5, 7\] fits x0"),
        ({"to_alpha_bar": torch.zeros(2)}, r"to_alpha_bar has shape \[2\]; \[3\] fits x0"),
        ({"offset": torch.zeros(3, 4, 5, 7, device="meta")}, "offset is on meta where x0 is"),
        ({"impl": "fast"}, "impl='fast' is unknown; accepted are auto, reference, triton"),
        ({"impl": "triton"}, "does not fit torch.float32 on cpu in guided_step: triton needs a CU"),
    ],
)
def test_what_does_not_fit_is_named(generator, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        guided_step(**guided_step_inputs(generator).step() | change)


def test_an_unknown_type_and_other_shapes_of_predictions_are_named(generator):
    inputs = prediction_inputs(generator)
    asked = (inputs.prediction, inputs.latents, inputs.alpha_bar)
    with pytest.raises(ValueError, match="prediction_type='eps' is unknown; accepted are epsilon"):
        eps_and_x0(*asked, "eps")
    with pytest.raises(ValueError, match=r"prediction has shape \[2, 4, 5, 7\]; .* fits latents"):
        eps_and_x0(inputs.prediction[:2], *asked[1:], "epsilon")


def test_a_residual_of_tensors_with_gradients_is_refused(generator):
    inputs = prediction_inputs(generator)
    with pytest.raises(ValueError, match="latents requires a gradient; noise_residual takes detac"):
        noise_residual(
            inputs.prediction,
            inputs.latents.requires_grad_(),
            inputs.alpha_bar,
            inputs.scale,
            inputs.offset,
            "epsilon",
        )
