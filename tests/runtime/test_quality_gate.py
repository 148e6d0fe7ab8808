"""A quantisation that is good enough passes; one that is not is refused, in a sentence."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from pivotal.engine import Engine
from pivotal.errors import BackendError, PrecisionError
from pivotal.query import Denoise
from pivotal.runtime import fp8, prepared
from pivotal.runtime.compiled_unet import CompileOptions
from pivotal.runtime.precision import precision_of
from pivotal.runtime.quality_gate import Gate, Measured, answers_of
from pivotal.runtime.torch_denoiser import TorchDenoiser


def rounded(weight, bits):
    """A matrix [out, ...] in floats with so many bits of fraction, a scale for each row."""
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    mantissa, exponent = torch.frexp(weight / scale)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round(), exponent - bits - 1) * scale


@pytest.fixture(scope="module")
def measured():
    """`measured(bits)`: how far `shapes` is from itself with its linear layers' weights rounded."""
    model = Engine.load().model
    conditioning = model.text.encode(["a red circle on a gray background"])
    plain = model.unet

    def answers(unet):
        denoiser = TorchDenoiser(unet, model.levels.config.prediction_type)
        return answers_of(denoiser, model.levels, conditioning, (4, 16, 16))

    exact = answers(plain)

    def measure(bits):
        coarse = copy.deepcopy(plain)
        with torch.no_grad():
            for name, module in coarse.named_modules():
                if fp8.fits(module, name):
                    module.weight.copy_(rounded(module.weight, bits))
        return exact.measured(answers(coarse))

    return measure


def test_a_network_passes_against_itself(measured):
    Gate(noise_error=1e-6, gradient_cosine=1 - 1e-9).check("itself", measured(23))


def test_eight_bit_floats_pass(measured):
    """e4m3 has three bits of fraction."""
    Gate().check("fp8", measured(3))


def test_one_bit_of_fraction_does_not(measured):
    with pytest.raises(PrecisionError, match=r"fp4 is too coarse .* choose another dtype"):
        Gate().check("fp4", measured(0))


@pytest.mark.parametrize(
    "wrong",
    [
        Measured(0.2, 1.0),
        Measured(0.2, None),
        Measured(0.0, 0.5),
        Measured(float("nan"), float("nan")),
    ],
)
def test_either_limit_refuses_and_so_does_nan(wrong):
    with pytest.raises(PrecisionError):
        Gate().check("tf32", wrong)


def test_only_linear_layers_with_whole_sides_are_quantised():
    assert fp8.fits(nn.Linear(32, 64), "")
    assert not fp8.fits(nn.Linear(30, 64), "")
    assert not fp8.fits(nn.Conv2d(16, 16, 3), "")


def test_without_torchao_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(BackendError, match=r"install pivotal\[fp8\]"):
        fp8.quantize(nn.Linear(32, 32))


@pytest.fixture
def rounding(monkeypatch):
    """`rounding(bits, compiled)`: `shapes` as in fp8, its weights replaced as torchao does, here by
    ones with so many bits of fraction.
    """

    def make(bits, compiled=None):
        def quantize(network):
            for name, module in network.named_modules():
                if fp8.fits(module, name):
                    module.weight = nn.Parameter(rounded(module.weight, bits), requires_grad=False)

        monkeypatch.setattr(prepared, "quantize", quantize)
        model = replace(Engine.load(dtype="bfloat16").model, precision=precision_of("fp8"))
        return model, prepared.torch_denoiser(model, lambda latents: latents, compiled)

    return make


def test_fp8_has_no_gradients_and_says_so(rounding):
    model, denoiser = rounding(3)
    assert denoiser.answers == {Denoise}
    engine = Engine(model, denoiser)
    made = engine.generate("a red circle on a gray background", num_inference_steps=2)
    with pytest.raises(BackendError, match=r"torch fp8 .* can't answer NoiseGradient"):
        engine.invert(made.images[0], made.prompts[0], num_inference_steps=2)
    assert set(engine.warm_up(rows=(1,))) == {"plain, 1 rows", "routed, 1 rows", "probe"}


@pytest.mark.parametrize("regional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_compiled_is_the_network_in_fp8(rounding, regional):
    """And what the gate compares it with is not."""
    compiled = CompileOptions(backend="eager", regional=regional)
    with pytest.raises(PrecisionError, match="fp8 is too coarse"):
        rounding(0, compiled)
