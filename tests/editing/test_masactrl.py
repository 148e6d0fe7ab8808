"""Mutual self-attention as routes, against explicit attention and by property."""

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pivotal.attention_routes import AttentionRoutes
from pivotal.control import NoEdit
from pivotal.editing.edit import Edit
from pivotal.editing.masactrl import MutualSelfAttention, with_mutual
from pivotal.errors import EditWithoutEffectError
from pivotal.query import Conditioning, Denoise

SOURCE, TARGET = "a red cat on the mat", "a red cat jumping on the mat"
OFF = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0}


def mutual_edit(**options):
    given = {"start_step": 1, "start_layer": 1} | options
    return Edit(TARGET, mutual=MutualSelfAttention(**given), **OFF)


@pytest.fixture
def mutual_processor():
    """diffusers' attention with the paper's replacement, written out, on [u_s, u_t, c_s, c_t]."""

    class Processor:
        def __init__(self, acts):
            self.acts = acts

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **ignored):
            memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for projection in (
                    attn.to_q(hidden_states), attn.to_k(memory), attn.to_v(memory)
                )
            )  # fmt: skip
            if self.acts:
                k = torch.stack([k[0], k[0], k[2], k[2]])
                v = torch.stack([v[0], v[0], v[2], v[2]])
            out = scaled_dot_product_attention(q, k, v, scale=attn.scale)
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

    return Processor


@pytest.mark.parametrize("start_layer", [0, 2])
def test_a_forward_pass_is_the_papers(
    routed, network, mutual_processor, tokenize, embed, noise, control, start_layer
):
    acting = control(SOURCE, [mutual_edit(start_layer=start_layer)])
    routes = acting.routes(2)
    assert routes.rows == 4
    prompts = torch.stack([embed(tokenize(text)) for text in ("", "", SOURCE, TARGET)])
    latents = torch.cat([noise, noise.roll(1, dims=-1)] * 2)
    timestep = torch.full((4,), 400.0)
    half = torch.full((4,), 0.5, dtype=torch.float64)
    ours = routed().answer(Denoise(latents, timestep, half, Conditioning(prompts), routes)).eps

    unet = copy.deepcopy(network(torch.float64))
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            module.set_processor(mutual_processor(False))
    order = [name for name, _ in _in_running_order(unet)]
    for layer, name in enumerate(order):
        unet.get_submodule(name).set_processor(mutual_processor(layer >= start_layer))
    with torch.no_grad():
        theirs = unet(latents, timestep, encoder_hidden_states=prompts).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def _in_running_order(unet):
    """Self-attention layers down, middle, up."""
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn1")]
    places = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(found, key=lambda pair: places[pair[0].split(".")[0]])


def test_the_source_is_untouched_and_the_target_follows(routed, sampled, tokenize, noise, control):
    plain = sampled(routed(), [tokenize(SOURCE)], noise, NoEdit())
    acting = control(SOURCE, [mutual_edit()])
    both = sampled(routed(), [tokenize(SOURCE), tokenize(TARGET)], noise, acting)
    torch.testing.assert_close(both[:1], plain, rtol=1e-8, atol=1e-8)
    free = sampled(routed(), [tokenize(TARGET)], noise, NoEdit())
    assert (both[1:] - free).abs().max() > 1e-3
    assert acting.touched(0)["mutual"].steps == 4
    assert acting.touched(0)["mutual"].layers == len(acting.layers.self_downscales) - 1


def test_two_targets_at_once_are_each_alone(routed, sampled, tokenize, noise, control):
    other = Edit("a blue cat on the mat", cross_replace_steps=0.8)
    prompts = [tokenize(text) for text in (SOURCE, TARGET, other.target)]
    both = sampled(routed(), prompts, noise, control(SOURCE, [mutual_edit(), other]))
    one = sampled(routed(), prompts[:2], noise, control(SOURCE, [mutual_edit()]))
    two = sampled(routed(), [prompts[0], prompts[2]], noise, control(SOURCE, [other]))
    torch.testing.assert_close(both[1], one[1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(both[2], two[1], rtol=1e-8, atol=1e-8)


def test_an_identical_target_stays_identical(routed, sampled, tokenize, noise, control):
    edit = Edit(SOURCE, mutual=MutualSelfAttention(1, 0), **OFF)
    both = sampled(routed(), [tokenize(SOURCE)] * 2, noise, control(SOURCE, [edit]))
    torch.testing.assert_close(both[1], both[0], rtol=1e-8, atol=1e-8)


def test_before_its_step_it_does_nothing(control):
    acting = control(SOURCE, [mutual_edit(start_step=3)])
    for step in range(5):
        assert acting.routes(step).rows == (4 if step >= 3 else 2)


def test_mutual_layers_give_up_injected_queries():
    routes = AttentionRoutes.identity(2, 7, 1, 4, 4)
    routes.self_queries[:, 1] = 0
    routes.self_keys[:, 1] = 0
    made = with_mutual(routes, {1: MutualSelfAttention(0, 2)})
    assert made.self_queries.tolist() == [[0, 1, 2, 2], [0, 1, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert made.self_keys.tolist() == [[0, 1, 2, 2], [0, 1, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]]
    assert made.self_values.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 2, 2], [0, 0, 2, 2]]


@pytest.mark.parametrize(("count", "first"), [(16, 10), (11, 6), (70, 43), (1, 0)])
def test_the_papers_layer_is_taken_in_proportion(count, first):
    assert MutualSelfAttention().layers(count) == range(first, count)


def test_what_would_do_nothing_and_what_is_impossible_are_refused(control):
    with pytest.raises(EditWithoutEffectError, match="leaves none of 5 steps"):
        control(SOURCE, [mutual_edit(start_step=5)])
    with pytest.raises(EditWithoutEffectError, match="start earlier"):
        control(SOURCE, [mutual_edit(start_layer=99)])
    for name in ("start_step", "start_layer"):
        with pytest.raises(ValueError, match=f"{name}=-1; 0 or more"):
            MutualSelfAttention(**{name: -1})
