import pytest
import torch

from pivotal.runtime.loss_scaling import LossScaling

FLOAT16 = torch.finfo(torch.float16)


def gradients(*sizes):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([size * torch.randn(4, 8, 8, generator=generator) for size in sizes])


@pytest.mark.parametrize("exponent", [0, 7])
def test_dynamic_factors_bring_every_row_to_one_size(exponent):
    found = gradients(1e-9, 1.0, 3e4)
    factors = LossScaling(exponent=exponent).factors(found)
    largest = (factors[:, None, None, None] * found).abs().amax(dim=(1, 2, 3))
    assert (largest >= 2**exponent).all()
    assert (largest < 2 ** (exponent + 1)).all()


@pytest.mark.parametrize("scaling", [LossScaling(), LossScaling("static", 20)])
def test_scaling_and_back_changes_no_bit_in_float32(scaling):
    found = gradients(1e-9, 1.0, 3e4)
    factors = scaling.factors(found)[:, None, None, None]
    assert torch.equal(found * factors / factors, found)


def test_a_row_is_scaled_by_itself_alone():
    found = gradients(1e-9, 1.0, 3e4)
    assert torch.equal(LossScaling().factors(found)[1:2], LossScaling().factors(found[1:2]))


def test_what_float16_would_lose_survives():
    found = gradients(1e-9)
    assert not found.half().any()
    factors = LossScaling().factors(found)[:, None, None, None]
    back = (found * factors).half().float() / factors
    assert ((back - found).norm() / found.norm()) < FLOAT16.eps


def test_a_row_of_zeros_gets_a_finite_factor():
    assert LossScaling(exponent=20).factors(torch.zeros(2, 4, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [(("adaptive", 0), "accepted are dynamic, static"), (("static", 99), "-24 to 60")],
)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LossScaling(*given)
