"""Text encoders and the autoencoder are on the device only while they are used."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pivotal
from pivotal.inversion.registry import METHODS
from pivotal.model.load import load
from pivotal.model.lora_file import Lora
from pivotal.model.offloading import Visiting, offload
from pivotal.planning import Planner, rehearsed


class Travelling(nn.Module):
    """Notes where it is sent, and goes nowhere."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def to(self, device):
        self.sent.append(str(device))
        return self


@pytest.fixture
def model(sdxl_folder):
    return load(sdxl_folder, family="sdxl")


def test_networks_visit_the_device_even_where_the_use_fails():
    network = Travelling()
    visiting = Visiting([network], torch.device("cuda"))
    assert network.sent == ["cpu"]
    with torch.no_grad():
        with visiting.present():
            assert network.sent[-1] == "cuda"
        assert network.sent == ["cpu", "cuda", "cpu"]
        with pytest.raises(RuntimeError, match="broken"), visiting.present():
            raise RuntimeError("broken")
    assert network.sent[-2:] == ["cuda", "cpu"]


def test_under_gradients_they_stay_as_a_backward_pass_comes_later():
    network = Travelling()
    visiting = Visiting([network], torch.device("cuda"))
    with torch.enable_grad(), visiting.present():
        pass
    with torch.no_grad(), visiting.present():
        pass
    assert network.sent[-1] == "cuda"


def test_every_use_is_a_visit(model):
    text, pictures = Travelling(), Travelling()
    model.text.visiting = Visiting([text], torch.device("cuda"))
    model.autoencoder.visiting = Visiting([pictures], torch.device("cuda"))
    with torch.no_grad():
        model.text.encode(["a cat"])
        latents = model.autoencoder.encode(torch.zeros(1, 3, 32, 32))
        model.autoencoder.decode(latents)
    assert text.sent == ["cpu", "cuda", "cpu"]
    assert pictures.sent == ["cpu", *["cuda", "cpu"] * 2]


class Carried(Visiting):
    """Into other memory at every move, as `Module.to` does, without another device."""

    def _move(self, device):
        for network in self._networks:
            for parameter in network.parameters():
                parameter.data = parameter.data.clone()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@torch.no_grad()
def test_loras_go_on_and_off_networks_that_travel(sdxl_folder, tmp_path, device):
    model, path = load(sdxl_folder, family="sdxl", device=device), tmp_path / "lora.safetensors"
    tensors = {}
    for stem in ("lora_te1", "lora_te2"):
        name = f"{stem}_text_model_encoder_layers_0_self_attn_q_proj"
        width = {"lora_te1": 32, "lora_te2": 48}[stem]
        tensors |= {
            f"{name}.lora_down.weight": torch.full((1, width), 0.3),
            f"{name}.lora_up.weight": torch.full((width, 1), 0.2),
        }
    save_file(tensors, path)
    before = [p.clone().cpu() for each in model.text.encoders for p in each.parameters()]
    plain = model.text.encode(["a red cat"])
    expected = load(sdxl_folder, family="sdxl", device=device, lora=path).text.encode(["a red cat"])
    if device == "cpu":
        model.text.visiting = Carried(model.text.encoders, model.device)
    else:
        offload(model)
    for worn, wanted in (([Lora(path)], expected), ([], plain), ([Lora(path)], expected)):
        model.loras.wear(worn)
        for _ in range(2):
            torch.testing.assert_close(model.text.encode(["a red cat"]).pooled, wanted.pooled)
    assert not torch.allclose(plain.pooled, expected.pooled)
    model.loras.wear([])
    after = [p.cpu() for each in model.text.encoders for p in each.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_plans_leave_out_what_is_not_there(model):
    plain = Planner.of(model, None).sampling("generating", (32, 32), rows=1)
    model.autoencoder.visiting = Visiting([], model.device)
    moved = Planner.of(model, None).sampling("generating", (32, 32), rows=1)

    def held(*networks):
        return sum(p.nbytes for network in networks for p in network.parameters())

    assert moved.weights == pytest.approx(held(model.unet.unet), rel=0.001)
    others = held(model.autoencoder.vae, *model.text.encoders)
    assert plain.weights - moved.weights == pytest.approx(others, rel=0.02)
    with_weights = plain.autoencoder + held(model.autoencoder.vae)
    assert moved.autoencoder == pytest.approx(
        max(with_weights, held(*model.text.encoders)), rel=0.02
    )
    assert (moved.row, moved.state) == (plain.row, plain.state)


def test_plans_know_long_prompts(model):
    one = Planner.of(model, None).networks.embedding
    model.text.take_long_prompts(2)
    assert Planner.of(model, None).networks.embedding == (2 * one[0], one[1])


def test_a_fit_of_the_pooled_vector_is_planned(levels):
    method = METHODS["null-text"]
    options = method.options_from({"fit_pooled": True})
    asked = rehearsed(method, options, levels.schedule(3), pooled=True)
    assert asked == {None: 1, "hidden_states": 1, "pooled": 1}


def test_on_a_cpu_it_is_refused(model):
    with pytest.raises(ValueError, match="offload with device 'cpu'"):
        offload(model)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["ddim", "null-text"])
def test_results_are_the_same_and_the_device_holds_the_unet_alone(sdxl_folder, method):
    picture = np.full((32, 32, 3), 90, np.uint8)
    found = []
    for wanted in (False, True):
        engine = pivotal.Engine.load(
            sdxl_folder, family="sdxl", device="cuda", offload=wanted, gradient_checkpointing=wanted
        )
        inversion = engine.invert(picture, "the red cat", method=method, num_inference_steps=2)
        found.append(engine.edit(inversion, "the red dog").latents)
    torch.testing.assert_close(*found)
    model = engine.model
    assert all(p.device.type == "cuda" for p in model.unet.parameters())
    for network in (model.autoencoder.vae, *model.text.encoders):
        assert all(p.device.type == "cpu" for p in network.parameters())
