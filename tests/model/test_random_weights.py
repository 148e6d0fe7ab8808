import pytest
import torch

from pivotal.model.families import FAMILIES
from pivotal.model.networks import empty_text_encoder, empty_unet
from pivotal.model.parts import random_parts
from pivotal.model.random_weights import RandomWeights
from pivotal.runtime.precision import Precision

CPU = torch.device("cpu")
SMALL = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}
TEXT = {
    "vocab_size": 30_000,  # 1.9 million weights: more than the block of random numbers
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def made(seed=0, dtype=torch.float32):
    network = empty_unet(SMALL)
    RandomWeights(seed).fill(network, device=CPU, dtype=dtype)
    return network


def test_a_seed_makes_one_model_and_another_seed_another():
    first, again, other = (made(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_has_the_same_weights_but_for_rounding(dtype):
    exact, low = made().state_dict(), made(dtype=dtype).state_dict()
    for name, value in low.items():
        assert torch.equal(value, exact[name].to(dtype))


def test_no_weight_is_left_unset_and_spread_follows_fan_in():
    for name, parameter in made().named_parameters():
        assert torch.isfinite(parameter).all()
        if parameter.ndim > 1:
            spread = parameter.std() * parameter[0].numel() ** 0.5
            assert 0.4 < spread < 2.3, name


def test_rows_of_a_weight_larger_than_the_block_differ():
    network = empty_text_encoder(TEXT, projected=False)
    RandomWeights(0).fill(network, device=CPU, dtype=torch.float32)
    table = network.get_input_embeddings().weight
    assert len(table.unique(dim=0)) == 30_000
    ids = torch.tensor([[1, 5, 2], [1, 6, 2]])
    hidden = network(ids).last_hidden_state
    assert torch.isfinite(hidden).all()
    assert (hidden[0] - hidden[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_network_stays_finite_and_listens_to_its_text(dtype):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator).to(dtype).expand(2, -1, -1, -1)
    text = torch.randn(2, 11, 64, generator=generator).to(dtype)
    with torch.no_grad():
        eps = made(dtype=dtype)(latents, 500, text).sample.float()
    assert torch.isfinite(eps).all()
    assert 0.1 < eps.std() < 2
    assert (eps[0] - eps[1]).std() > 0.02


def test_a_family_without_a_published_architecture_is_refused():
    with pytest.raises(ValueError, match="'shapes' has no published architecture"):
        random_parts(FAMILIES["shapes"], 0, CPU, Precision())
