"""Any number of rows on few batch sizes: answered as alone, and asked in no other size."""

from dataclasses import replace

import pytest
import torch

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import drive, drive_many, require
from pivotal.errors import BackendError
from pivotal.query import Denoise, LossGradient, NoiseGradient
from pivotal.runtime.buckets import BucketedDenoiser, Buckets, padded


@pytest.fixture
def question(latents, prompts):
    """`question(rows, seed, gradient=False)`: a query whose rows are at levels of their own."""

    def make(rows, seed=0, *, dtype=torch.float64, gradient=False, routes=None):
        generator = torch.Generator().manual_seed(seed)
        timesteps = 900 * torch.rand(rows, generator=generator)
        alpha_bars = 0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64)
        shared = (
            latents(rows, seed=seed, dtype=dtype),
            timesteps,
            alpha_bars,
            prompts(rows, seed=seed, dtype=dtype),
        )
        if not gradient:
            return Denoise(*shared, routes)
        scale = torch.rand(rows, generator=generator).to(dtype)
        return NoiseGradient(*shared, scale, latents(rows, seed=seed + 50, dtype=dtype))

    return make


@pytest.fixture
def bucketed(torch_denoiser, recording):
    """(denoiser in buckets, the eager one, what was asked of it)."""

    def make(buckets, dtype=torch.float64, **options):
        eager = torch_denoiser(dtype=dtype, **options)
        asked = recording(eager)
        return BucketedDenoiser(asked, buckets, eager.unet.layers, eager=eager), eager, asked

    return make


def assert_equal_answers(found, expected, **tolerance):
    for name in type(expected).__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-8, "atol": 1e-9}))


@pytest.mark.parametrize("gradient", [False, True])
def test_any_number_of_rows_is_asked_in_the_buckets_sizes_and_answered_as_alone(
    bucketed, question, gradient
):
    denoiser, eager, asked = bucketed(Buckets((2, 4)))
    for rows in range(1, 10):
        query = question(rows, rows, gradient=gradient)
        assert_equal_answers(denoiser.answer(query), eager.answer(query))
    assert set(asked.sizes) == {2, 4}


def test_tied_rows_stay_in_one_batch_with_full_capacity_and_their_own_word_maps(
    bucketed, question, swap_routes
):
    denoiser, eager, asked = bucketed(Buckets((1, 4), columns=6))
    pair = swap_routes(eager.unet, columns=3)
    routes = AttentionRoutes.cat([pair.identity_like(1), pair, pair, pair])  # 7 rows
    query = question(7, routes=routes)
    answer = denoiser.answer(query)
    assert answer.word_maps.shape[1] == 3
    assert_equal_answers(answer, eager.answer(query))
    assert asked.sizes == [4, 4]  # 1 + 2 of the first, then 2 + 2
    for batch in asked.batches:
        assert batch.routes.columns == 6


def test_padding_rows_point_at_themselves(question, torch_denoiser, swap_routes):
    query = question(2, routes=swap_routes(torch_denoiser().unet, columns=2))
    routes = padded(query, 5).routes
    own = torch.arange(5)
    for name in ("self_queries", "self_keys", "self_values", "donors"):
        assert (getattr(routes, name)[..., 2:] == own[2:]).all()
    assert (routes.cross_gate[:, 2:] == 0).all()
    assert (routes.mix[2:] == 0).all()
    assert (routes.keep[2:] == 1).all()


def test_more_tied_rows_than_the_largest_bucket_are_refused(bucketed, question, swap_routes):
    denoiser, eager, _ = bucketed(Buckets((1, 2)))
    routes = AttentionRoutes.cat([swap_routes(eager.unet)] * 2)
    routes.donors[3] = 0  # rows 0, 1, 2 and 3 borrow from each other
    with pytest.raises(ValueError, match="largest bucket holds 2"):
        denoiser.answer(question(4, routes=routes))


def test_more_word_columns_than_the_capacity_are_refused(bucketed, question, swap_routes):
    denoiser, eager, _ = bucketed(Buckets((2,), columns=2))
    with pytest.raises(ValueError, match="3 word columns do not fit into 2"):
        denoiser.answer(question(2, routes=swap_routes(eager.unet, columns=3)))


def test_a_users_loss_sees_no_padding(bucketed, question):
    seen = []

    def loss(images):
        seen.append(len(images))
        return images.square().mean(dim=(1, 2, 3))

    denoiser, eager, asked = bucketed(Buckets((4,)), decode=lambda z: z[:, :3].sigmoid())
    plain = question(3)
    query = LossGradient(plain.latents, plain.timesteps, plain.alpha_bars, plain.conditioning, loss)
    assert_equal_answers(denoiser.answer(query), eager.answer(query))
    assert seen == [3, 3]
    assert asked.batches == []
    without = BucketedDenoiser(asked, Buckets((4,)), eager.unet.layers)
    with pytest.raises(BackendError, match="LossGradient"):
        require(without, {LossGradient}, "loss guidance")


def asking(query, times=2):
    """A job whose question depends on its last answer."""
    for _ in range(times):
        answer = yield from query
        moved = answer.x0 if isinstance(query, Denoise) else answer.eps
        query = replace(query, latents=0.5 * query.latents + 0.5 * moved)
    return answer


@pytest.mark.parametrize("gradient", [False, True])
def test_in_one_invariant_bucket_company_changes_no_bit(bucketed, question, swap_routes, gradient):
    denoiser, eager, asked = bucketed(Buckets((8,), invariant=True), torch.float32)
    routes = swap_routes(eager.unet, columns=2)
    wanted = question(1, 1, dtype=torch.float32, gradient=gradient)
    alone = drive(asking(wanted), denoiser)
    for place in range(3):  # another row of the batch each time
        company = [
            question(2, 7 + each, dtype=torch.float32, gradient=gradient) for each in range(place)
        ]
        after = question(2, 30, dtype=torch.float32, gradient=gradient)
        if not gradient:
            after = replace(after, routes=routes)
        jobs = drive_many(
            [asking(query) for query in (*company, wanted, after)], denoiser, max_rows=8
        )
        assert_equal_answers(jobs[place].result(), alone, rtol=0, atol=0)
    assert set(asked.sizes) == {8}


def test_without_invariance_a_lone_row_costs_no_full_batch(bucketed, question):
    denoiser, _, asked = bucketed(Buckets((1, 8)))
    assert denoiser.answer(question(1)).word_maps is None
    assert asked.sizes == [1]
    assert asked.batches[0].routes is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sizes": ()}, "ascending"),
        ({"sizes": (0, 2)}, "ascending"),
        ({"sizes": (4, 2)}, "ascending"),
        ({"sizes": (2, 2)}, "ascending"),
        ({"columns": 0}, "columns=0"),
        ({"sizes": (2, 4), "invariant": True}, "one size"),
    ],
)
def test_wrong_buckets_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Buckets(**options)
