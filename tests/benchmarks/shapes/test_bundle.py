"""The bundled folder is a Stable Diffusion 1.x by layout: diffusers' own parts load it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

import pivotal
from pivotal.bench.shapes.captions import caption
from pivotal.bench.shapes.oracle import read
from pivotal.bench.shapes.scenes import draw, sample_scene
from shapes.images import psnr, to_images, to_tensor
from shapes.pictures import PICTURES, SCENE
from shapes.sampling import sample_images
from shapes.train_autoencoder import held_out_images

BUNDLED = Path(pivotal.__path__[0]) / "bundled"
SHAPES = BUNDLED / "shapes"
LIMIT = 14 * 2**20


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(SHAPES / "vae", torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SHAPES / "tokenizer", local_files_only=True)


def _round_trip(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return to_images(vae.decode(vae.encode(to_tensor(images)).latent_dist.mode()).sample)


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    files = [path for path in SHAPES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}


def test_the_schedule_is_that_of_stable_diffusion_1() -> None:
    config = DDIMScheduler.from_pretrained(SHAPES / "scheduler").config
    assert (config.beta_start, config.beta_end) == (0.00085, 0.012)
    assert config.beta_schedule == "scaled_linear"
    assert config.prediction_type == "epsilon"
    assert config.timestep_spacing == "leading"
    assert config.steps_offset == 1
    assert not config.set_alpha_to_one
    assert not config.clip_sample


def test_captions_are_encoded_without_unknowns(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        text = caption(sample_scene(rng), rng)
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens).replace(" - ", "-").strip() == text


def test_held_out_scenes_survive_the_autoencoder(vae: AutoencoderKL) -> None:
    images = held_out_images(16)
    assert psnr(images, _round_trip(vae, images)).mean() > 28


def test_the_photograph_survives_the_autoencoder(vae: AutoencoderKL) -> None:
    with Image.open(BUNDLED / "pictures" / "cat.png") as picture:
        small = np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS))
    assert psnr(small[None], _round_trip(vae, small[None]))[0] > 23


def test_the_oracle_reads_round_trips(vae: AutoencoderKL) -> None:
    rng = np.random.default_rng(200)
    scenes = [sample_scene(rng) for _ in range(32)]
    images = _round_trip(vae, np.stack([draw(scene)[0] for scene in scenes]))
    for scene, image in zip(scenes, images, strict=True):
        reading = read(image)
        assert reading.background == scene.background.colour
        assert [(o.shape, o.colour) for o in reading.objects] == [
            (o.shape, o.colour) for o in scene.objects
        ]


def test_scaled_latents_have_about_unit_deviation(vae: AutoencoderKL) -> None:
    rng = np.random.default_rng(201)
    images = np.stack([draw(sample_scene(rng))[0] for _ in range(32)])
    with torch.no_grad():
        latents = vae.encode(to_tensor(images)).latent_dist.mode() * vae.config.scaling_factor
    assert 0.85 < float(latents.std()) < 1.15


def test_diffusers_own_parts_sample_what_is_asked(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> None:
    unet = UNet2DConditionModel.from_pretrained(SHAPES / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(SHAPES / "text_encoder", dtype=torch.float32)
    prompts = [
        "a large red circle on a gray background",
        "a large yellow square on a black background",
    ]
    images = sample_images(unet, vae, tokenizer, text_encoder, prompts, steps=20, seed=0)
    readings = [read(image) for image in images]
    assert [r.background for r in readings] == ["gray", "black"]
    assert [[o.colour for o in r.objects] for r in readings] == [["red"], ["yellow"]]


def test_the_demo_pictures_are_described_and_the_scene_was_never_trained() -> None:
    listed = json.loads((BUNDLED / "pictures" / "pictures.json").read_text())
    assert listed == PICTURES
    for entry in listed:
        assert (BUNDLED / "pictures" / entry["file"]).exists()
    with Image.open(BUNDLED / "pictures" / "scene.png") as picture:
        assert np.array_equal(np.asarray(picture), draw(SCENE)[0])
    rng = np.random.default_rng(5)
    triple = (SCENE.objects[0].shape, SCENE.objects[0].colour, SCENE.background.colour)
    for _ in range(500):
        scene = sample_scene(rng)
        assert all((o.shape, o.colour, scene.background.colour) != triple for o in scene.objects)
