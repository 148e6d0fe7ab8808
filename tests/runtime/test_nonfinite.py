"""Rows that overflow in half precision are asked again in float32, and only they."""

from dataclasses import replace

import pytest
import torch

from pivotal.driver import drive
from pivotal.query import Denoise, NoiseGradient
from pivotal.runtime.nonfinite import HigherPrecisionRetry, Upcast, finite_rows
from pivotal.runtime.torch_denoiser import TorchDenoiser

LOUD = 3e4  # latents that overflow float16 within the network, and not float32


@pytest.fixture
def denoisers(torch_denoiser, recording):
    """The tiny network in float16: retried in float32, that retry's recording, alone."""
    plain = torch_denoiser(dtype=torch.float16)
    with torch.no_grad():
        plain.unet.unet.conv_in.weight.mul_(10)
    higher = recording(TorchDenoiser(Upcast(plain.unet), "epsilon", dtype=torch.float32))
    return HigherPrecisionRetry(plain, higher), higher, plain


@pytest.fixture
def query(latents, prompts):
    """Three rows; the second is loud."""

    def make(loud=LOUD):
        found = latents(3, dtype=torch.float32)
        found[1] *= loud
        return Denoise(
            found,
            torch.full((3,), 500.0),
            torch.full((3,), 0.5, dtype=torch.float64),
            prompts(3, dtype=torch.float32),
        )

    return make


def test_an_overflowing_row_is_asked_again_and_no_other(denoisers, query):
    retrying, higher, plain = denoisers
    alone = plain.answer(query())
    assert finite_rows(alone).tolist() == [True, False, True]
    answer = retrying.answer(query())
    assert finite_rows(answer).all()
    assert torch.equal(answer.eps[[0, 2]], alone.eps[[0, 2]])
    assert higher.sizes == [1]
    assert (retrying.retried, retrying.lost) == (1, 0)


def test_the_second_answer_is_the_float32_networks(denoisers, query):
    retrying, _, plain = denoisers
    answer = retrying.answer(query())
    wide = TorchDenoiser(plain.unet.float(), "epsilon").answer(query())
    torch.testing.assert_close(answer.eps[1], wide.eps[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.x0[1], wide.x0[1], rtol=1e-4, atol=1e-4)


def test_weights_stay_in_half_precision(denoisers, query):
    retrying, _, plain = denoisers
    retrying.answer(query())
    assert {parameter.dtype for parameter in plain.unet.parameters()} == {torch.float16}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_overflows_is_asked_again_too(denoisers, query, checkpointing):
    """A checkpointed network runs again in its backward pass, which must be as wide."""
    retrying, _, plain = denoisers
    plain.unet.checkpoint_gradients(checkpointing)
    asked = query()
    gradient = NoiseGradient(
        asked.latents,
        asked.timesteps,
        asked.alpha_bars,
        asked.conditioning,
        scale=torch.ones(3),
        offset=torch.zeros_like(asked.latents),
    )
    answer = retrying.answer(gradient)
    assert retrying.retried == 1
    wide = TorchDenoiser(plain.unet.float(), "epsilon").answer(gradient)
    torch.testing.assert_close(answer.loss[1], wide.loss[1], rtol=1e-3, atol=1e-4)
    error = (answer.gradient[1] - wide.gradient[1]).norm() / wide.gradient[1].norm()
    assert error < 1e-3


def test_a_row_takes_its_donor_along(denoisers, query, swap_routes):
    retrying, higher, _ = denoisers
    asked = query().select(torch.tensor([0, 1]))
    routes = swap_routes(retrying.unet).to("cpu")
    answer = retrying.answer(replace(asked, routes=routes))
    assert finite_rows(answer).all()
    assert higher.sizes == [2]
    assert answer.word_maps.isfinite().all()


def test_what_is_sound_is_asked_once(denoisers, query):
    retrying, higher, plain = denoisers
    answer = retrying.answer(query(loud=1.0))
    assert torch.equal(answer.eps, plain.answer(query(loud=1.0)).eps)
    assert higher.sizes == []
    assert (retrying.retried, retrying.lost) == (0, 0)


@pytest.mark.filterwarnings("ignore")
def test_what_float32_can_not_say_either_is_counted_as_lost(denoisers, query, caplog):
    retrying, _, _ = denoisers
    answer = retrying.answer(query(loud=1e38))
    assert finite_rows(answer).tolist() == [True, False, True]
    assert (retrying.retried, retrying.lost) == (1, 1)
    assert "1 rows hold NaN or infinity in float32 too" in caplog.text


def test_latents_that_are_not_finite_themselves_are_not_asked_again(denoisers, query):
    retrying, higher, _ = denoisers
    retrying.answer(query(loud=float("nan")))
    assert higher.sizes == []


def test_it_is_a_denoiser_as_the_one_inside(denoisers, query):
    retrying, _, plain = denoisers

    def algorithm():
        return (yield from query())

    assert drive(algorithm(), retrying).eps.isfinite().all()
    assert retrying.answers == plain.answers
    assert retrying.name == plain.name
    assert retrying.rows_forward == plain.rows_forward
