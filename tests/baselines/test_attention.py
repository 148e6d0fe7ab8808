import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from baselines.attention import ExplicitAttention, attention_modules, explicit_copy, leave_alone


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize("text_width", [None, 7])
def test_every_option_of_a_module_is_honoured(generator, processor, text_width):
    torch.manual_seed(2)
    attention = Attention(
        query_dim=24,
        cross_attention_dim=text_width,
        heads=3,
        dim_head=5,
        bias=True,
        out_bias=True,
        norm_num_groups=4,
        residual_connection=True,
        rescale_output_factor=1.7,
    ).double()
    attention.eval()
    x = torch.randn(2, 9, 24, generator=generator, dtype=torch.float64)
    text = None
    if text_width is not None:
        text = torch.randn(2, 13, text_width, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        attention.set_processor(processor())
        theirs = attention(x, encoder_hidden_states=text)
        attention.set_processor(ExplicitAttention("here", leave_alone))
        ours = attention(x, encoder_hidden_states=text)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_unet_on_explicit_maps_is_the_same_unet(unet, noise, texts):
    latents, step = noise.expand(4, -1, -1, -1), torch.tensor([981, 401, 21, 1])
    before = dict(unet.attn_processors)
    with torch.no_grad():
        theirs = unet(latents, step, encoder_hidden_states=texts).sample
        ours = explicit_copy(unet)(latents, step, encoder_hidden_states=texts).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert unet.attn_processors == before
    assert (theirs[0] - theirs[1]).std() > 0.3 * theirs.std()  # the prompt matters


def test_the_hook_sees_every_softmax_map_in_running_order(unet, noise, texts):
    seen = []

    def watch(attention, is_cross, place):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]).double())
        seen.append((place, is_cross, tuple(attention.shape)))
        return attention

    with torch.no_grad():
        explicit_copy(unet, watch)(noise, 500, encoder_hidden_states=texts[:1])
    assert [place for place, _, _ in seen] == [place for place, _ in attention_modules(unet)]
    names = dict(unet.named_modules())
    for place, is_cross, shape in seen:
        assert is_cross == place.endswith("attn2")
        assert names[place].is_cross_attention == is_cross
        assert shape[0] == 2
        assert shape[1] in (256, 64)
        assert shape[2] == (11 if is_cross else shape[1])


def test_the_hooks_map_is_the_one_used(unet, noise, texts):
    def even(attention, is_cross, place):
        return torch.full_like(attention, 1 / attention.shape[-1]) if is_cross else attention

    shuffled = texts[:1, torch.arange(10, -1, -1)]
    with torch.no_grad():
        model = explicit_copy(unet, even)
        one = model(noise, 500, encoder_hidden_states=texts[:1]).sample
        other = model(noise, 500, encoder_hidden_states=shuffled).sample
        plain = unet(noise, 500, encoder_hidden_states=texts[:1]).sample
    torch.testing.assert_close(one, other)
    assert (one - plain).abs().max() > 1e-3
