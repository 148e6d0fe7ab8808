"""Images to inversions and back, on the bundled model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pivotal
from pivotal.errors import InversionFileError, NonFiniteError

PROMPT = "a red circle on a gray background"
STEPS = 4


def test_reconstruction_at_guidance_1_nears_the_round_trip_as_steps_grow(trained, picture):
    distances = []
    for steps in (6, 18):
        inversion = trained.invert(picture, PROMPT, method="ddim", num_inference_steps=steps)
        found = trained.reconstruct(inversion, guidance_scale=1.0)
        distances.append(np.square(found.picture.astype(float) - found.round_trip).mean())
    assert distances[0] > 2 * distances[1]


def test_null_text_reconstructs_better_under_guidance_than_ddim(
    trained, picture, trained_inversion
):
    fitted = trained.invert(
        picture, PROMPT, method="null-text", num_inference_steps=STEPS, options={"inner_steps": 5}
    )
    assert trained.reconstruct(fitted).psnr > trained.reconstruct(trained_inversion).psnr + 0.5


def test_the_report_counts_the_unet_rows(engine, picture, inversion):
    assert inversion.report["unet_rows"] == STEPS
    before = engine.denoiser.rows_forward
    options = {"inner_steps": 2, "early_stop": 0, "early_stop_growth": 0}
    fitted = engine.invert(picture, PROMPT, num_inference_steps=3, options=options)
    counted = engine.denoiser.rows_forward - before
    assert counted == fitted.report["unet_rows"] <= 3 * (1 + 1 + 2) + 3


def test_embeddings_that_are_not_finite_are_refused_where_they_arise(engine, picture):
    options = {"learning_rate": 1e38, "inner_steps": 2, "early_stop": 0}
    with pytest.raises(NonFiniteError, match="null-text inversion"):
        engine.invert(picture, PROMPT, num_inference_steps=2, options=options)


def test_progress_is_told_step_by_step(engine, picture):
    heard = []
    engine.invert(
        picture, PROMPT, method="ddim", num_inference_steps=STEPS, on_progress=heard.append
    )
    assert [notice.step for notice in heard] == list(range(STEPS))
    assert {notice.steps for notice in heard} == {STEPS}


@pytest.mark.parametrize("change", ["fewer steps", "nothing stored"])
def test_an_inversion_that_lacks_what_its_replay_needs_is_refused(engine, picture, change):
    fitted = engine.invert(picture, PROMPT, num_inference_steps=3, options={"inner_steps": 1})
    if change == "fewer steps":
        fitted = replace(fitted, num_inference_steps=4)
    else:
        fitted = replace(fitted, inverted=replace(fitted.inverted, stored={}))
    with pytest.raises(InversionFileError, match=r"null_embeddings|whose .* differ"):
        engine.reconstruct(fitted)


def test_guidance_given_twice_is_refused(engine, picture):
    with pytest.raises(ValueError, match="give it once"):
        engine.invert(picture, PROMPT, guidance_scale=5, options={"guidance_scale": 3})


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pil", "numpy", "floats", "tensor"])
def test_images_of_every_kind_invert_alike(engine, picture, inversion, tmp_path, kind):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    given = {
        "path": tmp_path / "picture.png",
        "text": str(tmp_path / "picture.png"),
        "bytes": (tmp_path / "picture.png").read_bytes(),
        "floats": picture.astype(np.float32) / 255,
        "pil": Image.fromarray(picture),
        "numpy": picture,
        "tensor": torch.from_numpy(picture).permute(2, 0, 1),
    }[kind]
    again = engine.invert(given, PROMPT, method="ddim", num_inference_steps=STEPS)
    assert torch.equal(again.inverted.noise, inversion.inverted.noise)
    assert again.image_digest == inversion.image_digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method='magic' is unknown; accepted are .*null-text"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"num_inference_steps": 2.5}, r"steps=2\.5; 1 to 1000"),
        ({"guidance_scale": "7"}, "guidance_scale='7'; a finite number"),
        ({"negative_prompt": torch.ones(2)}, "negative_prompt is of type Tensor; a text"),
        ({"options": {"speed": 2}}, "no option 'speed'"),
        ({"policy": "squash"}, "policy='squash' is unknown; accepted are fit, crop, pad, stretch"),
        ({"size": (63, 64)}, r"size=\(63, 64\); \(height, width\) in multiples of 4"),
        ({"size": 64}, "size=64"),
        ({"size": (64.0, 64.0)}, r"size=\(64.0"),
        ({"prompt": None}, "prompt=None; a text is expected"),
    ],
)
def test_wrong_input_is_named(engine, picture, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.invert(picture, **{"prompt": PROMPT, "num_inference_steps": STEPS, **arguments})


@pytest.mark.parametrize("images", ["photo.png", b"...", np.zeros((64, 64, 3), np.uint8), None])
def test_what_is_no_list_of_images_is_refused(engine, images):
    with pytest.raises(ValueError, match=r"images is of type \w+; a list is expected"):
        engine.invert_many(images, PROMPT, method="ddim")


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(trained_inversion, picture):
    engine = pivotal.Engine.load("shapes", device="cuda")
    again = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)
    assert torch.allclose(again.inverted.noise.cpu(), trained_inversion.inverted.noise, atol=2e-2)
    edited = engine.edit(trained_inversion, "a blue circle on a gray background", blend="auto")
    assert np.isfinite(edited.latents.cpu().numpy()).all()
    assert (
        engine.reconstruct(trained_inversion).picture.shape == picture.shape
    )  # from a file: on the CPU


def drawn(picture, shift):
    return np.roll(picture, shift, axis=1)


@pytest.mark.parametrize("method", ["ddim", "null-text"])
def test_a_batch_of_images_equals_each_alone(trained, picture, method):
    images = [drawn(picture, shift) for shift in (0, 8, 16)]
    prompts = [PROMPT, "a red circle", PROMPT]
    common = {
        "method": method,
        "num_inference_steps": 2,
        "options": {"inner_steps": 2} if method == "null-text" else {},
    }
    together = trained.invert_many(images, prompts, max_rows=2, **common)
    assert len(together) == 3
    for image, prompt, inversion in zip(images, prompts, together, strict=True):
        alone = trained.invert(image, prompt, **common)
        assert inversion.prompt == prompt
        assert inversion.image_digest == alone.image_digest
        assert inversion.report["unet_rows"] == alone.report["unet_rows"]
        assert torch.allclose(inversion.inverted.noise, alone.inverted.noise, atol=1e-4)
        for name, stored in alone.inverted.stored.items():
            assert torch.allclose(inversion.inverted.stored[name], stored, atol=1e-3)


def test_images_of_a_batch_share_the_unets_batches(engine, picture, recording):
    recorder = recording(engine.denoiser)
    shared = pivotal.Engine(engine.model, recorder)
    images = [drawn(picture, shift) for shift in (0, 8, 16)]
    shared.invert_many(images, PROMPT, method="ddim", num_inference_steps=3)
    assert recorder.sizes == [3, 3, 3]


def test_equal_images_of_a_batch_are_inverted_once(engine, picture):
    before = engine.denoiser.rows_forward
    first, second = engine.invert_many(
        [picture, picture.copy()], PROMPT, method="ddim", num_inference_steps=3
    )
    assert engine.denoiser.rows_forward - before == 3
    assert torch.equal(first.inverted.noise, second.inverted.noise)


def test_one_bad_image_costs_the_others_nothing(engine, picture, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    images = [picture, tmp_path / "notes.txt", drawn(picture, 8)]
    prompts = [PROMPT, PROMPT, "red " * 100]
    with pytest.raises(pivotal.BatchError, match=r"2 of 3 images .*notes\.txt") as caught:
        engine.invert_many(images, prompts, method="ddim", num_inference_steps=2)
    assert sorted(caught.value.errors) == [1, 2]
    assert caught.value.results[0].image_digest
    assert caught.value.results[1:] == [None, None]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompts", [[PROMPT], []])
def test_prompts_that_do_not_match_the_images_are_refused(engine, picture, prompts):
    with pytest.raises(ValueError, match=f"{len(prompts)} prompts for 2 images"):
        engine.invert_many([picture, picture], prompts)


def test_progress_of_a_batch_is_that_of_the_image_furthest_behind(engine, picture):
    heard = []
    images = [drawn(picture, shift) for shift in (0, 8)]
    engine.invert_many(
        images, PROMPT, method="ddim", num_inference_steps=3, on_progress=heard.append
    )
    assert [notice.step for notice in heard] == [0, 1, 2]


def test_a_wrong_argument_is_refused_once_not_image_by_image(engine, picture):
    with pytest.raises(ValueError, match="policy='squash'"):
        engine.invert_many([picture, picture], PROMPT, policy="squash")


def test_a_size_that_halves_unevenly_inverts_reconstructs_and_edits(engine, picture):
    """Latents of 9 x 13: the UNet's coarser layers round up."""
    inversion = engine.invert(
        picture, PROMPT, method="ddim", num_inference_steps=2, size=(36, 52), policy="pad"
    )
    edited = engine.edit(inversion, "a blue circle on a gray background", blend="auto")
    assert edited.pictures[0].shape == (36, 52, 3)
    assert engine.reconstruct(inversion).picture.shape == (36, 52, 3)
