import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from pivotal.errors import EditWithoutEffectError
from pivotal.runtime.probe import probe_routes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_layer_of_an_adapted_unet_follows_its_route(torch_denoiser, latents, prompts, dtype):
    denoiser = torch_denoiser(dtype=dtype)
    layers = denoiser.unet.layers
    changes = probe_routes(denoiser, layers, prompts(2, dtype=dtype), latents(2, dtype=dtype))
    assert list(changes) == [layer.name for layer in layers]
    assert {layer.kind for layer in layers} == {"self", "cross"}
    assert min(changes.values()) > 1e-5


def test_a_layer_with_a_foreign_processor_is_named(torch_denoiser, latents, prompts):
    for kind in ("self", "cross"):
        denoiser = torch_denoiser()
        layers = denoiser.unet.layers
        deaf = [layer.name for layer in layers if layer.kind == kind][1]
        denoiser.unet.unet.get_submodule(deaf).set_processor(AttnProcessor2_0())
        with pytest.raises(EditWithoutEffectError, match=f"1 of {len(layers)}.*ignore") as caught:
            probe_routes(denoiser, layers, prompts(2), latents(2))
        assert str(caught.value).endswith(f"their route: {deaf}")


def test_a_unet_that_ignores_all_routes_is_found(torch_denoiser, latents, prompts):
    denoiser = torch_denoiser(dtype=torch.float32)
    layers = denoiser.unet.layers
    reports = next(layer.name for layer in layers if layer.kind == "cross" and layer.downscale == 2)
    for layer in layers:
        if layer.name != reports:
            denoiser.unet.unet.get_submodule(layer.name).set_processor(AttnProcessor2_0())
    with pytest.raises(EditWithoutEffectError, match=f"{len(layers) - 1} of {len(layers)}"):
        probe_routes(
            denoiser, layers, prompts(2, dtype=torch.float32), latents(2, dtype=torch.float32)
        )


@pytest.mark.parametrize("max_rows", [2, 5, 100])
def test_small_batches_find_what_one_large_one_finds(
    torch_denoiser, recording, latents, prompts, max_rows
):
    denoiser = torch_denoiser()
    layers = denoiser.unet.layers
    asked = recording(denoiser)
    whole = probe_routes(denoiser, layers, prompts(2), latents(2))
    parts = probe_routes(asked, layers, prompts(2), latents(2), max_rows=max_rows)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert max(asked.sizes) <= max_rows
    deaf = layers[3].name
    denoiser.unet.unet.get_submodule(deaf).set_processor(AttnProcessor2_0())
    with pytest.raises(EditWithoutEffectError, match=deaf):
        probe_routes(denoiser, layers, prompts(2), latents(2), max_rows=max_rows)


def test_a_probe_needs_a_donor_and_a_row(torch_denoiser, latents, prompts):
    denoiser = torch_denoiser()
    with pytest.raises(ValueError, match="max_rows=1"):
        probe_routes(denoiser, denoiser.unet.layers, prompts(2), latents(2), max_rows=1)
