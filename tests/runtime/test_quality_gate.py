"""A quantisation that is good enough passes; one that is not is refused, in a sentence."""

import copy

import pytest
import torch
from torch import nn

from pivotal.engine import Engine
from pivotal.errors import BackendError, PrecisionError
from pivotal.runtime import fp8
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
    "wrong", [Measured(0.2, 1.0), Measured(0.0, 0.5), Measured(float("nan"), float("nan"))]
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
