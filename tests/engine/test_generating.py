"""Text to image, against diffusers' own pipeline."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import pivotal
from pivotal.images import read_settings, save_image
from pivotal.records import embedded, generation_record

STEPS = 4


def test_a_seed_gives_the_same_picture_alone_and_in_company(engine):
    prompts = ["a red circle on a gray background", "a blue square on a white background"]
    together = engine.generate(prompts, num_inference_steps=STEPS, seed=3)
    alone = engine.generate(prompts[1], num_inference_steps=STEPS, seed=4)
    assert together.seeds == [3, 4]
    assert np.abs(alone.pictures[0].astype(int) - together.pictures[1]).max() <= 1


def test_generating_from_no_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="at least one prompt"):
        engine.generate([])


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_that_no_generator_takes_is_named(engine, seed):
    with pytest.raises(ValueError, match=f"seed={seed}; 0 to {2**63 - 1} is possible"):
        engine.generate("a red circle", num_inference_steps=1, seed=seed)


def test_the_last_of_several_seeds_is_checked_too(engine):
    with pytest.raises(ValueError, match=f"seed={2**63}"):
        engine.generate(PROMPTS, num_inference_steps=1, seed=2**63 - 1)


def test_a_picture_can_be_made_again_from_the_settings_that_it_carries(engine, tmp_path):
    made = engine.generate(
        PROMPTS, negative_prompt="blue", num_inference_steps=STEPS, seed=3, size=(32, 64),
        guidance_scale=5.0,
    )  # fmt: skip
    record = generation_record(engine.model, made, 1, {})
    save_image(made.pictures[1], tmp_path / "one.png", embedded(record))
    said = read_settings(tmp_path / "one.png")
    again = engine.generate(
        said["prompt"], negative_prompt=said["negative_prompt"], seed=said["seed"],
        num_inference_steps=said["steps"], size=said["size"], guidance_scale=said["guidance_scale"],
    )  # fmt: skip
    assert np.abs(again.pictures[0].astype(int) - made.pictures[1]).max() <= 1
    other = engine.generate(
        said["prompt"], seed=said["seed"], num_inference_steps=said["steps"], size=said["size"],
        guidance_scale=said["guidance_scale"],
    )  # fmt: skip
    assert np.abs(other.pictures[0].astype(int) - made.pictures[1]).max() > 1


PROMPTS = ["a red circle on a gray background", "a blue square"]


@pytest.fixture(scope="module")
def pipeline():
    folder = str(files("pivotal") / "bundled/shapes")
    made = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["one generator", "a generator each"])
def test_generating_equals_diffusers_pipeline_step_by_step(trained, pipeline, kind):
    def common():
        generator = seeded(3) if kind == "one generator" else [seeded(3), seeded(4)]
        return {
            "prompt": PROMPTS,
            "num_inference_steps": STEPS,
            "guidance_scale": 5.0,
            "generator": generator,
            "output_type": "np",
        }

    ours, theirs = [], []

    def hear(told):
        def callback(runs, step, timestep, tensors):
            told.append((step, int(timestep), tensors["latents"].clone()))
            return {}

        return callback

    made = trained.generate(**common(), callback_on_step_end=hear(ours))
    expected = pipeline(**common(), callback_on_step_end=hear(theirs))
    assert np.abs(made.images - expected.images).max() < 1e-4
    assert len(ours) == len(theirs) == STEPS
    for (step, timestep, latents), (their_step, their_timestep, expected_latents) in zip(
        ours, theirs, strict=True
    ):
        assert (step, timestep) == (their_step, their_timestep)
        assert torch.allclose(latents, expected_latents, atol=1e-4)


def test_a_negative_prompt_is_diffusers(trained, pipeline):
    common = {"num_inference_steps": 2, "negative_prompt": "a blue square"}
    made = trained.generate(PROMPTS[0], seed=1, output_type="pt", **common)
    expected = pipeline(PROMPTS[0], generator=seeded(1), output_type="pt", **common)
    assert torch.allclose(made.images, expected.images, atol=1e-4)


def test_a_seed_is_a_generator_of_that_seed(engine):
    by_seed = engine.generate(PROMPTS[0], num_inference_steps=2, seed=9)
    by_generator = engine.generate(PROMPTS[0], num_inference_steps=2, generator=seeded(9))
    assert torch.equal(by_seed.latents, by_generator.latents)
    assert (by_seed.seeds, by_generator.seeds) == ([9], None)


def test_no_seed_is_seed_0(engine):
    common = {"num_inference_steps": 2, "output_type": "latent"}
    assert torch.equal(
        engine.generate(PROMPTS, **common).images, engine.generate(PROMPTS, seed=0, **common).images
    )


def test_output_types_are_one_picture(engine):
    made = {
        kind: engine.generate(PROMPTS, num_inference_steps=2, output_type=kind)
        for kind in ("pil", "np", "pt", "latent")
    }
    assert all(isinstance(image, Image.Image) for image in made["pil"].images)
    assert made["np"].images.shape == (2, 64, 64, 3)
    assert made["pt"].images.shape == (2, 3, 64, 64)
    assert made["np"].images.dtype == np.float32
    assert np.array_equal(made["pt"].images.permute(0, 2, 3, 1).numpy(), made["np"].images)
    rounded = np.rint(made["np"].images * 255)
    for image, pixels, picture in zip(
        made["pil"].images, rounded, made["np"].pictures, strict=True
    ):
        assert np.abs(np.asarray(image).astype(float) - pixels).max() <= 1
        assert np.array_equal(np.asarray(image), picture)
    assert made["latent"].pictures == []
    decoded = engine.decode(made["latent"].images)
    assert np.array_equal(np.asarray(decoded[1]), np.asarray(made["pil"].images[1]))


def test_a_size_of_ones_own(engine):
    made = engine.generate(PROMPTS[0], num_inference_steps=1, size=(32, 48))
    assert made.images[0].size == (48, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "jpeg"}, "output_type='jpeg' is unknown; accepted are pil, np, pt"),
        ({"size": (30, 64)}, r"size=\(30, 64\); .*multiples of 4"),
        ({"size": (0, 64)}, r"size=\(0, 64\)"),
        ({"seed": 1, "generator": seeded(1)}, "seed=1 beside a generator"),
        ({"generator": [seeded(1)]}, "1 generators for 2 prompts"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    ],
)
def test_wrong_arguments_are_named(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPTS, **arguments)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_no_batch_exceeds_max_rows_and_the_pictures_are_the_same(engine, recording, max_rows):
    denoiser = recording(engine.denoiser)
    counted = pivotal.Engine(engine.model, denoiser)
    common = {"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 1}
    few = counted.generate(PROMPTS, max_rows=max_rows, **common)
    assert max(denoiser.sizes) == max_rows
    expected = engine.generate(PROMPTS, **common).latents
    torch.testing.assert_close(few.latents, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="max_rows=0"):
        counted.generate(PROMPTS, max_rows=0, **common)
