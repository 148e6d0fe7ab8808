"""From text and pixels to the edited picture, against diffusers' and transformers' own modules.

The reference runs in float64, plainly: nothing of the engine is used.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import pivotal
from baselines import families as golden
from baselines.prompt_to_prompt import Controls

SOURCE, TARGET = "the red cat", "the red dog"
STEPS, SCALE, LENGTH, SIDE = 3, 3.0, 20, 32
FAMILIES = ("sd1", "sd2", "sdxl")
CLOSE = {"rtol": 0, "atol": 2e-4}  # of latents whose deviation is near 1; the engine has float32


class Plain:
    """A model folder's parts by their libraries' own classes, in float64."""

    def __init__(self, folder, family):
        def part(kind, name):
            return kind.from_pretrained(folder / name, local_files_only=True).double().eval()

        self.unet, self.vae = part(UNet2DConditionModel, "unet"), part(AutoencoderKL, "vae")
        self.towers = [(part(CLIPTextModel, "text_encoder"), self.tokenizer(folder / "tokenizer"))]
        if family == "sdxl":
            second = part(CLIPTextModelWithProjection, "text_encoder_2")
            self.towers.append((second, self.tokenizer(folder / "tokenizer_2")))
        kept = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        kept.setdefault("set_alpha_to_one", True)  # Euler's, whose last sigma is 0
        kept["prediction_type"] = "v_prediction" if family == "sd2" else "epsilon"
        self.grid = golden.grid(kept, STEPS)

    @staticmethod
    def tokenizer(folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def text(self, prompts):
        said = []
        for tower, tokenizer in self.towers:
            ids = tokenizer(
                prompts, padding="max_length", max_length=LENGTH, return_tensors="pt"
            ).input_ids
            said.append(tower(ids, output_hidden_states=True))
        if len(said) == 1:
            return golden.Text(said[0].last_hidden_state)
        hidden = torch.cat([each.hidden_states[-2] for each in said], dim=-1)
        pooled = said[1].text_embeds
        shown = torch.tensor([prompt != "" for prompt in prompts])
        ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * len(prompts), dtype=torch.float64)
        return golden.Text(hidden * shown[:, None, None], pooled * shown[:, None], ids)

    def encode(self, pixels):
        picture = torch.from_numpy(pixels).double().permute(2, 0, 1)[None] / 127.5 - 1
        return self.vae.encode(picture).latent_dist.mode() * self.vae.config.scaling_factor

    def decode(self, latents):
        picture = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        pixels = ((picture + 1) * 127.5).round().clamp(0, 255)
        return pixels.permute(0, 2, 3, 1).numpy().astype(int)


@pytest.fixture(scope="module")
def folders(sd_folder, sdxl_folder, tmp_path_factory):
    """SDXL's scheduler names its spacing, as the published one does."""
    xl = tmp_path_factory.mktemp("golden") / "xl"
    shutil.copytree(sdxl_folder, xl)
    path = xl / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "timestep_spacing": "leading"}))
    return {"sd1": sd_folder, "sd2": sd_folder, "sdxl": xl}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_whole_edit_is_the_references(folders, family):
    folder = folders[family]
    told = {"prediction_type": "v_prediction"} if family == "sd2" else {}
    engine = pivotal.Engine.load(folder, family=family, **told)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    inversion = engine.invert(
        pixels, SOURCE, method="ddim", num_inference_steps=STEPS, guidance_scale=SCALE
    )
    edit = pivotal.Edit(TARGET, cross_replace_steps=0.67, self_replace_steps=0.34)
    edited = engine.edit(inversion, edit)

    plain = Plain(folder, family)
    texts, nulls = plain.text([SOURCE, TARGET]), plain.text(["", ""])
    latents = plain.encode(pixels)
    torch.testing.assert_close(inversion.latents.double(), latents, **CLOSE)
    noise = golden.pivots(plain.unet, plain.grid, latents, plain.text([SOURCE]))[-1]
    torch.testing.assert_close(inversion.inverted.noise.double(), noise, **CLOSE)

    window = torch.zeros(STEPS, 1, LENGTH)
    window[:2] = 1
    controls = Controls(
        mapper=torch.eye(LENGTH)[None],
        cross_alpha=window,
        self_window=(0, 1),
        self_max_pixels=(SIDE // 2 // 2) ** 2,  # two pixels a latent, in half of the latents' side
    )
    wanted, free = (
        golden.edit(plain.unet, plain.grid, noise, texts, nulls, each, SCALE)
        for each in (controls, Controls())
    )
    apart = [wanted[0] - wanted[1], free[1] - wanted[1]]
    assert all(each.abs().max() > 10 * CLOSE["atol"] for each in apart)  # both would show
    torch.testing.assert_close(edited.latents.double(), wanted, **CLOSE)
    shown = plain.decode(wanted)
    for found, expected in zip([edited.reconstruction, *edited.pictures], shown, strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1
