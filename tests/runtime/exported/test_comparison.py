"""What the golden check measures by."""

import torch
from torch import nn

from pivotal.runtime.exported import float32_copy as module
from pivotal.runtime.exported.comparison import answers
from pivotal.runtime.exported.float32_copy import float32_copy


def test_the_answers_that_are_compared_hold_none_of_the_networks_memory(small):
    scratch = torch.zeros(1)

    def network(inputs):
        scratch.add_(1)
        return (scratch,)

    found = answers(small.parts[0], network, small.record.profile)
    assert [each.item() for (each,) in found] == [1.0, 2.0]


def test_a_half_precision_network_is_copied_to_float32_with_its_large_weights_shared(monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 16 * 16)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16), nn.LayerNorm(16)).half()
    expected = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16), nn.LayerNorm(16))
    expected.load_state_dict(network.state_dict())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = torch.randn(3, 8)
    copied = float32_copy(network)
    with torch.no_grad():
        assert torch.equal(copied(inputs), expected(inputs))
        assert not torch.equal(network(inputs.half()).float(), expected(inputs))
    pointers = {each.data_ptr() for each in copied.parameters()}
    assert network[2].weight.data_ptr() in pointers
    assert network[0].weight.data_ptr() not in pointers
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, before[name])
