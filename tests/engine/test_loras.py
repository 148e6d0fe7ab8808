"""LoRAs on an engine: worn, taken off, exchanged; what was inverted without them is another's."""

import threading

import pytest
import torch
from safetensors.torch import save_file

import pivotal
from pivotal.errors import BackendError, ModelError
from pivotal.model.load import load
from pivotal.model.lora import require_own_weights
from pivotal.model.lora_file import Lora
from pivotal.query import Denoise
from pivotal.runtime.cuda_graphs import CudaCapture, GraphedDenoiser
from pivotal.runtime.torch_denoiser import TorchDenoiser

PROMPT = "a red circle on a gray background"


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Of every cross-attention's values in the bundled model."""
    engine = pivotal.Engine.load("shapes")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in engine.model.unet.unet.named_modules():
        if name.endswith("attn2.to_v"):
            out, into = module.weight.shape
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, into, generator=generator) / 8
            tensors[f"{stem}.lora_up.weight"] = torch.randn(out, 2, generator=generator) / 4
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


def made(engine):
    return engine.generate(
        PROMPT, num_inference_steps=2, seed=1, output_type="pt", guidance_scale=2
    ).images


def test_a_picture_changes_with_a_lora_and_comes_back_without(lora, picture):
    engine = pivotal.Engine.load("shapes")
    plain, fingerprint = made(engine), engine.model.fingerprint
    inverted = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=1)
    engine.lora(f"{lora}:0.8")
    styled = made(engine)
    inside = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=1)
    assert inside.report["additions"] == [f"lora {lora.name}:0.8"]
    assert inside.fingerprint == engine.model.fingerprint != fingerprint
    assert not torch.equal(styled, plain)
    assert torch.equal(made(pivotal.Engine.load("shapes", lora=f"{lora}:0.8")), styled)
    with pytest.raises(ModelError, match=r"model 'shapes' \(.*'shapes' with lora style"):
        engine.reconstruct(inverted)
    engine.lora()
    assert torch.equal(made(engine), plain)
    assert engine.model.fingerprint == fingerprint
    with pytest.raises(ModelError, match=r"with model 'shapes' with lora style.safetensors:0\.8"):
        engine.reconstruct(inside)
    engine.reconstruct(inverted)


def test_the_plan_counts_the_originals_of_changed_weights(lora):
    engine = pivotal.Engine.load("shapes")

    def planned():
        return engine.plan("ddim", num_inference_steps=1).weights

    plain = planned()
    changed = [
        module.weight
        for name, module in engine.model.unet.unet.named_modules()
        if name.endswith("attn2.to_v")
    ]
    engine.lora(lora, f"{lora}:0.5")
    assert planned() - plain == sum(weight.nbytes for weight in changed) > 0
    engine.lora()
    assert planned() == plain


def test_no_call_changes_its_weights_midway(lora):
    engine = pivotal.Engine.load("shapes")
    refused = []

    def change(engine, step, timestep, tensors):
        with pytest.raises(ModelError, match="has to wait until no call") as caught:
            engine.lora(lora)
        refused.append(caught.value)
        return {}

    engine.generate(PROMPT, num_inference_steps=1, callback_on_step_end=change)
    with engine:
        engine.submit(
            engine.generate, PROMPT, num_inference_steps=1, callback_on_step_end=change
        ).result()
    assert len(refused) == 2
    assert engine.model.loras.worn == ()


def test_a_call_is_not_changed_between_its_prompts_and_its_network(lora, monkeypatch):
    engine = pivotal.Engine.load("shapes")
    plain, encode, refused = made(engine), engine.model.text.encode, []

    def and_then_change(*arguments, **options):
        found = encode(*arguments, **options)
        other = threading.Thread(target=lambda: refused.append(engine_refuses(engine, lora)))
        other.start()
        other.join(timeout=5)
        return found

    monkeypatch.setattr(engine.model.text, "encode", and_then_change)
    assert torch.equal(made(engine), plain)
    assert refused
    assert all(refused)


def engine_refuses(engine, lora):
    try:
        engine.lora(lora)
    except ModelError:
        return True
    return False


def test_weights_that_are_elsewhere_are_not_taken_for_changed():
    for backend in ("onnx", "tensorrt", "onnx+torch"):
        with pytest.raises(BackendError, match="weights of its own"):
            require_own_weights("plain", backend)
    with pytest.raises(BackendError, match="load the model with lora="):
        require_own_weights("fp8", "torch fp8")
    require_own_weights("plain", "compiled")


def recorded(work):
    """What a captured graph does, without a GPU: the same work again, into the same memory."""
    static = work()
    return lambda: static.eps.copy_(work().eps), static


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_captured_graph_answers_with_the_loras_of_the_moment(lora, device):
    model = load("shapes", device=device)
    place, captures = torch.device(device), []
    record = recorded if device == "cpu" else CudaCapture(place)

    def capture(work):
        captures.append(work)
        return record(work)

    eager = TorchDenoiser(model.unet, "epsilon")
    graphed = GraphedDenoiser(eager, place, capture=capture)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    alpha_bars = torch.full((1,), 0.5, dtype=torch.float64)
    asked = Denoise(latents, torch.full((1,), 300.0), alpha_bars, model.text.encode([PROMPT]))
    query, seen = asked.to(place), []
    for worn in ([], [Lora(lora)], [Lora(lora, 0.5)], []):
        model.loras.wear(worn)
        seen.append(graphed.answer(query).eps)
        torch.testing.assert_close(seen[-1], eager.answer(query).eps, rtol=1e-4, atol=1e-4)
    assert len(captures) == 1
    assert torch.equal(seen[0], seen[3])
    assert min((seen[1] - seen[0]).abs().max(), (seen[2] - seen[1]).abs().max()) > 1e-3
