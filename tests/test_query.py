from dataclasses import replace

import pytest
import torch

from pivotal.attention_routes import AttentionRoutes
from pivotal.query import Conditioning, Denoise, Noise, NoiseGradient, every_row
from pivotal.schedule import NoiseLevel

LEVEL = NoiseLevel(0.3, 500.25)


@pytest.fixture
def query(latents, prompts):
    def make(rows, *, seed=0, sdxl=False):
        return Denoise.at(latents(rows, seed=seed), LEVEL, prompts(rows, seed=seed, sdxl=sdxl))

    return make


def test_a_query_carries_the_levels_alpha_bar_and_the_asked_timestep(latents, prompts):
    query = Denoise.at(latents(3), LEVEL, prompts(3), timestep=700)
    assert query.timesteps.tolist() == [700.0] * 3
    assert query.alpha_bars.tolist() == [0.3] * 3
    assert (query.timesteps.dtype, query.alpha_bars.dtype) == (torch.float32, torch.float64)
    assert every_row(latents(2), LEVEL)[0].tolist() == [500.25] * 2
    # 0 is a timestep like any other
    assert Denoise.at(latents(1), LEVEL, prompts(1), timestep=0.0).timesteps.item() == 0


@pytest.mark.parametrize("sdxl", [False, True])
def test_joined_queries_select_into_their_parts(query, sdxl):
    parts = [query(rows, seed=rows, sdxl=sdxl) for rows in (2, 1, 3)]
    joined = Denoise.cat(parts)
    assert joined.rows == 6
    start = 0
    for part in parts:
        again = joined.select(torch.arange(start, start + part.rows))
        for name in ("latents", "timesteps", "alpha_bars"):
            assert torch.equal(getattr(again, name), getattr(part, name))
        for name in ("hidden_states", "pooled", "time_ids"):
            ours, theirs = getattr(again.conditioning, name), getattr(part.conditioning, name)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        start += part.rows


def test_unrouted_rows_join_routed_ones_as_the_identity(query):
    routes = AttentionRoutes.identity(2, 7, 1, 3, 3)
    routes.donors[1] = 0
    joined = Denoise.cat([query(1), replace(query(2), routes=routes), query(3)])
    assert joined.routes.donors.tolist() == [0, 1, 1, 3, 4, 5]
    assert joined.ties() == [[0], [1, 2], [3], [4], [5]]
    picked = joined.select(torch.tensor([2, 1, 5]))
    assert picked.routes.donors.tolist() == [1, 1, 2]
    assert torch.equal(picked.latents, joined.latents[[2, 1, 5]])
    assert query(2).ties() == [[0], [1]]


def test_owned_answers_share_no_memory(latents):
    noise = Noise(latents(), latents(seed=1), torch.ones(1, 2, 4, 4))
    for other in (noise.owned(), noise.select(torch.tensor([0]))):
        for name in ("eps", "x0", "word_maps"):
            mine, theirs = getattr(noise, name), getattr(other, name)
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()
    assert Noise(latents(), latents()).owned().word_maps is None


def test_queries_of_wrong_shapes_are_refused_naming_them(query, latents, prompts):
    good = query(2)
    for change, sentence in [
        ({"latents": good.latents[0]}, r"latents are \[B, C, h, w\]"),
        ({"timesteps": good.timesteps[:1]}, r"timesteps have shape \[1\]"),
        ({"alpha_bars": good.alpha_bars[0]}, r"alpha_bars have shape \[\]"),
        ({"conditioning": prompts(3)}, "2 rows of latents but 3 rows of conditioning"),
        ({"routes": AttentionRoutes.identity(3, 7, 1, 3, 3)}, "3 rows of routes"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            replace(good, **change)


def test_gradients_of_nonsense_are_refused(query):
    good = query(2)
    rest = (good.latents, good.timesteps, good.alpha_bars, good.conditioning)
    scale, offset = torch.ones(2), torch.zeros_like(good.latents)
    with pytest.raises(ValueError, match="wrt='weights' is unknown; accepted are hidden_states"):
        NoiseGradient(*rest, scale, offset, "weights")
    with pytest.raises(ValueError, match="pooled vector"):
        NoiseGradient(*rest, scale, offset, "pooled")
    with pytest.raises(ValueError, match=r"scale \[1\]"):
        NoiseGradient(*rest, scale[:1], offset)
    with pytest.raises(ValueError, match="offset"):
        NoiseGradient(*rest, scale, offset[:1])


def test_conditionings_of_different_kind_or_length_differ_in_kind(prompts):
    kinds = [
        prompts(1).kind(),
        prompts(1, length=8).kind(),
        prompts(1, sdxl=True).kind(),
        prompts(1, dtype=torch.float32).kind(),
    ]
    assert len(set(kinds)) == 4
    assert prompts(3, seed=5).kind() == kinds[0]
    assert Conditioning(torch.zeros(2, 7, 16, dtype=torch.float64)).kind() == kinds[0]
