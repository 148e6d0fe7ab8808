import pytest
import torch

from pivotal.sampling.adam import AdamState, adam_step


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, {"betas": (0.5, 0.9), "eps": 1e-3}),
    ],
)
def test_twenty_updates_are_torchs_with_changing_learning_rates(options, theirs):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=1.0, **theirs)
    ours, state = start, AdamState.fresh(start)
    for update in range(20):
        rate = 1e-2 * (1 - update / 30)
        gradient = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        gradient = gradient * 10.0 ** (update % 5 - 6)  # also near epsilon
        ours, state = adam_step(ours, gradient, state, rate, **options)
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(ours, parameter.detach(), rtol=1e-12, atol=1e-12)
    assert state.updates == 20


def test_rows_are_updated_apart():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=generator)
    gradients = torch.randn(4, 3, 4, generator=generator)
    whole, state = start, AdamState.fresh(start)
    one, its = start[1:2], AdamState.fresh(start).select(torch.tensor([1]))
    for gradient in gradients:
        whole, state = adam_step(whole, gradient, state, 1e-2)
        one, its = adam_step(one, gradient[1:2], its, 1e-2)
    torch.testing.assert_close(one, whole[1:2], rtol=0, atol=0)
    torch.testing.assert_close(its.square, state.square[1:2], rtol=0, atol=0)


def test_an_update_leaves_its_arguments_alone():
    parameter, gradient = torch.ones(2), torch.ones(2)
    state = AdamState.fresh(parameter)
    moved, after = adam_step(parameter, gradient, state, 0.1)
    assert parameter.eq(1).all()
    assert state.mean.eq(0).all()
    assert (state.updates, after.updates) == (0, 1)
    torch.testing.assert_close(moved, torch.full((2,), 0.9))  # the first step has the rate's size
