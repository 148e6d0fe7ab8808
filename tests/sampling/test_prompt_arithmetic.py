import pytest
import torch

from pivotal.query import Conditioning
from pivotal.sampling.prompt_arithmetic import interpolate, scale_token, swap_tokens


@pytest.mark.parametrize("path", ["linear", "spherical"])
@pytest.mark.parametrize("sdxl", [False, True])
def test_the_ends_are_the_prompts(prompts, path, sdxl):
    first, second = prompts(2, seed=1, sdxl=sdxl), prompts(2, seed=2, sdxl=sdxl)
    for amount, expected in ((0.0, first), (1.0, second)):
        found = interpolate(first, second, amount, path=path)
        torch.testing.assert_close(found.hidden_states, expected.hidden_states)
        if sdxl:
            torch.testing.assert_close(found.pooled, expected.pooled)
            assert torch.equal(found.time_ids, first.time_ids)


def test_a_spherical_path_keeps_lengths_and_turns_evenly(prompts):
    first, second = prompts(seed=1), prompts(seed=2)
    second = Conditioning(
        second.hidden_states
        / second.hidden_states.norm(dim=-1, keepdim=True)
        * first.hidden_states.norm(dim=-1, keepdim=True)
    )
    angles = []
    for amount in (0.25, 0.5, 1.0):
        found = interpolate(first, second, amount, path="spherical").hidden_states
        torch.testing.assert_close(found.norm(dim=-1), first.hidden_states.norm(dim=-1))
        cosine = torch.nn.functional.cosine_similarity(found, first.hidden_states, dim=-1)
        angles.append(torch.acos(cosine))
    torch.testing.assert_close(angles[0] * 4, angles[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(angles[1] * 2, angles[2], rtol=1e-6, atol=1e-6)


def test_where_vectors_point_the_same_or_opposite_ways_the_path_stays_finite(prompts):
    first = prompts(seed=1)
    for factor in (1.0, 3.0, -1.0, 0.0):
        other = Conditioning(factor * first.hidden_states)
        found = interpolate(first, other, 0.5, path="spherical").hidden_states
        assert found.isfinite().all()
        if factor >= 0:
            torch.testing.assert_close(found, (1 + factor) / 2 * first.hidden_states)


def test_only_the_tokens_named_move(prompts):
    first, second = prompts(seed=1, sdxl=True), prompts(seed=2, sdxl=True)
    found = interpolate(first, second, 0.3, tokens=[2, 4])
    whole = interpolate(first, second, 0.3)
    for place in range(7):
        expected = whole if place in (2, 4) else first
        assert torch.equal(found.hidden_states[:, place], expected.hidden_states[:, place])
    assert torch.equal(found.pooled, first.pooled)


def test_tokens_are_swapped_and_scaled(prompts):
    first, second = prompts(2, seed=1), prompts(2, seed=2)
    kept = first.hidden_states.clone()
    swapped = swap_tokens(first, second, {1: 3, 2: 2}).hidden_states
    assert torch.equal(swapped[:, 1], second.hidden_states[:, 3])
    assert torch.equal(swapped[:, 2], second.hidden_states[:, 2])
    assert torch.equal(swapped[:, 3:], first.hidden_states[:, 3:])
    scaled = scale_token(first, [0, 5], -2.0).hidden_states
    assert torch.equal(scaled[:, 5], -2 * first.hidden_states[:, 5])
    assert torch.equal(scaled[:, 1:5], first.hidden_states[:, 1:5])
    assert torch.equal(scale_token(first, 5, 2.0).hidden_states[:, 5], 2 * kept[:, 5])
    assert torch.equal(first.hidden_states, kept)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: interpolate(p(), p(), 0.5, path="cubic"), "path='cubic' is unknown"),
        (lambda p: interpolate(p(), p(), float("nan")), "amount=nan; a finite number"),
        (lambda p: interpolate(p(), p(length=5), 0.5), "have nothing between them"),
        (lambda p: interpolate(p(), p(), 0.5, tokens=[7]), "token 7 is not there; 0 to 6 are"),
        (lambda p: swap_tokens(p(), p(length=5), {1: 5}), "token 5 is not there; 0 to 4 are"),
        (lambda p: scale_token(p(), [-1], 2.0), "token -1 is not there"),
    ],
)
def test_impossible_wishes_are_refused(prompts, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(prompts)
