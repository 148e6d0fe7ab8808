"""Samplers, losses and embeddings through the engine, from noise and from an inversion."""

from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import pivotal
from pivotal.driver import Denoiser
from pivotal.engine import Engine
from pivotal.errors import BackendError, NonFiniteError
from pivotal.images import psnr
from pivotal.query import Denoise
from pivotal.sampling.loss_guidance import LossGuidance
from pivotal.sampling.losses import channel_level, similarity
from pivotal.sampling.samplers import SAMPLERS

PROMPT, OTHER = "a red circle on a gray background", "a blue square on a white background"
STEPS = 4


def blueness(made):
    return float(np.mean([abs(each[:, :, 2] / 255 - 0.9).mean() for each in made.pictures]))


def test_ddim_with_eta_is_diffusers_and_draws_as_it_does(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(
        str(files("pivotal") / "bundled/shapes"), dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    common = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "eta": 0.6}

    def both(generator):
        ours = trained.generate([PROMPT, OTHER], output_type="pt", generator=generator(), **common)
        theirs = pipeline([PROMPT, OTHER], output_type="pt", generator=generator(), **common)
        assert torch.allclose(ours.images, theirs.images, atol=1e-4)

    both(lambda: torch.Generator().manual_seed(3))
    both(lambda: [torch.Generator().manual_seed(seed) for seed in (3, 4)])


def test_ddpm_is_ddim_at_eta_1_and_seeds_repeat_it(engine):
    made = engine.generate(PROMPT, num_inference_steps=STEPS, sampler="ddpm", seed=3)
    same = engine.generate(PROMPT, num_inference_steps=STEPS, eta=1.0, seed=3)
    assert torch.equal(made.latents, same.latents)
    assert made.sampling["sampler"] == "ddpm"
    assert same.sampling["sampler_options"] == {"eta": 1.0}
    other = engine.generate(PROMPT, num_inference_steps=STEPS, seed=3)
    assert (other.latents - made.latents).abs().max() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_samplers_pictures_do_not_depend_on_their_company(engine, name):
    common = {"num_inference_steps": 3, "sampler": name, "output_type": "latent"}
    both = engine.generate([PROMPT, OTHER], seed=3, **common).images
    alone = engine.generate(OTHER, seed=4, **common).images
    assert both.isfinite().all()
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_a_step_size_is_a_number_of_steps(engine):
    made = engine.generate(PROMPT, step_size=250, output_type="latent")
    same = engine.generate(PROMPT, num_inference_steps=4, output_type="latent")
    assert torch.equal(made.images, same.images)


def test_a_users_loss_is_lowered_and_sees_pictures_of_the_range_promised(engine):
    shapes = []

    def blue(pictures):
        shapes.append(tuple(pictures.shape))
        assert 0 <= pictures.detach().min() <= pictures.detach().max() <= 1
        return (pictures[:, 2] - 0.9).abs().mean(dim=(1, 2))

    common = {"num_inference_steps": 6, "seed": 3}
    plain = engine.generate([PROMPT, OTHER], **common)
    guided = engine.generate(
        [PROMPT, OTHER], loss=LossGuidance(blue, scale=75, periodicity=2), **common
    )
    assert set(shapes) == {(2, 3, 64, 64)}
    assert blueness(guided) < blueness(plain)
    assert guided.sampling["loss"] == {
        "name": "blue", "scale": 75, "periodicity": 2, "through_unet": False,
    }  # fmt: skip
    shipped = engine.generate(
        [PROMPT, OTHER], loss=LossGuidance(channel_level("blue"), periodicity=2), **common
    )
    assert torch.equal(shipped.latents, guided.latents)
    bare = engine.generate([PROMPT, OTHER], loss=blue, **common)
    assert not torch.equal(bare.latents, plain.latents)


def test_a_loss_of_the_wrong_shape_is_an_error_of_one_sentence(engine):
    with pytest.raises(ValueError, match=r"one value per row, shape \[1\]; got \[\]"):
        engine.generate(PROMPT, num_inference_steps=2, loss=LossGuidance(torch.mean, periodicity=1))


class WithoutGradients(Denoiser):
    """The engine's own denoiser, as an exported one answers."""

    name, answers = "exported", frozenset({Denoise})

    def __init__(self, inner):
        self.inner = inner

    def answer(self, query):
        return self.inner.answer(query)


def test_a_backend_without_gradients_refuses_a_loss_before_anything_runs(engine):
    exported = Engine(engine.model, WithoutGradients(engine.denoiser))
    with pytest.raises(BackendError, match="exported backend can't answer LossGradient"):
        exported.generate(PROMPT, loss=channel_level("blue"))
    assert exported.generate(PROMPT, num_inference_steps=1).pictures


def test_embeddings_are_taken_where_a_prompt_is(engine):
    text = engine.generate([PROMPT, OTHER], num_inference_steps=2, negative_prompt=OTHER)
    given = engine.generate(
        [engine.encode(PROMPT), OTHER], num_inference_steps=2, negative_prompt=engine.encode(OTHER)
    )
    torch.testing.assert_close(given.latents, text.latents, rtol=1e-4, atol=1e-4)
    assert (given.prompts, given.negative_prompt) == ([None, OTHER], None)


def test_arithmetic_on_words_finds_their_tokens(engine):
    red, blue = (f"a {colour} circle on a gray background" for colour in ("red", "blue"))
    here, there = engine.tokens(red).find("red"), engine.tokens(blue).find("blue")
    swapped = pivotal.swap_tokens(
        engine.encode(red), engine.encode(blue), dict(zip(here, there, strict=True))
    )
    assert torch.equal(
        swapped.hidden_states[:, list(here)], engine.encode(blue).hidden_states[:, list(there)]
    )
    made = engine.generate(
        [pivotal.scale_token(swapped, here, 1.2), engine.encode(red)],
        num_inference_steps=2, output_type="latent",
    )  # fmt: skip
    assert made.images.shape[0] == 2


@pytest.mark.parametrize(
    "name", ["direct", "k-euler", "finite-difference", "edict", "belm", "edit-friendly"]
)
def test_style_starts_from_the_noise_of_methods_with_grids_and_starts_of_their_own(
    engine, picture, name
):
    found = engine.invert(picture, PROMPT, method=name, num_inference_steps=3)
    made = engine.style(found, OTHER)
    assert made.pictures[0].shape == picture.shape
    assert made.latents.dtype == torch.float32


def test_style_at_amount_0_and_guidance_1_is_the_reconstruction(engine, inversion):
    found = engine.reconstruct(inversion, guidance_scale=1.0)
    same = engine.style(inversion, OTHER, amount=0.0, guidance_scale=1.0)
    assert psnr(same.pictures[0], found.picture) > 50
    between, whole = engine.style(
        inversion, [pivotal.interpolate(engine.encode(PROMPT), engine.encode(OTHER), 0.5), OTHER],
        guidance_scale=1.0,
    ).latents  # fmt: skip
    half = engine.style(inversion, OTHER, amount=0.5, guidance_scale=1.0).latents[0]
    torch.testing.assert_close(half, between, rtol=1e-3, atol=1e-3)
    assert (whole - between).abs().max() > 1e-2


def test_style_takes_a_loss_and_a_sampler(engine, inversion, picture):
    wanted = torch.from_numpy(picture).permute(2, 0, 1) / 255
    common = {"guidance_scale": 2.0, "sampler": "euler"}
    plain = engine.style(inversion, OTHER, **common)
    near = engine.style(
        inversion, OTHER, loss=LossGuidance(similarity(wanted), 200.0, periodicity=1), **common
    )
    assert psnr(near.pictures[0], picture) > psnr(plain.pictures[0], picture)
    drawn = [engine.style(inversion, OTHER, eta=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert not torch.equal(drawn[0].latents, drawn[2].latents)
    assert (plain.seeds, drawn[2].seeds) == (None, [2])


def test_another_models_inversion_is_refused(engine, inversion):
    with pytest.raises(pivotal.PivotalError, match="the inversion was made with model"):
        engine.style(replace(inversion, fingerprint="0" * 64), OTHER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "sampler='heun' is unknown; accepted are ddim"),
        ({"sampler": "euler", "eta": 0.5}, "sampler euler has no option 'eta', given as 0.5"),
        ({"eta": 2.0}, r"eta=2\.0; 0 to 1"),
        ({"order": 2}, "ddim has no option 'order'.*order is for lms"),
        ({"sampler": "lms", "order": 0}, "order=0; a whole number"),
        ({"step_size": 3}, "step_size=3; a divisor of 1000"),
        ({"step_size": 10, "num_inference_steps": 3}, "num_inference_steps=3 beside step_size=10"),
        ({"loss": "blue"}, "loss='blue'; a function of pictures"),
        ({"prompt": 3.5}, "'float' object|prompt=3.5"),
        ({"prompt": [3]}, r"prompt=3; a text is expected"),
        ({"prompt": pivotal.Conditioning(torch.zeros(2, 3, 4))}, r"embeddings are \[2, 3, 4\]"),
    ],
)
def test_wrong_arguments_are_named(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(**{"prompt": PROMPT, **arguments})


def test_an_edit_of_embeddings_is_referred_to_style(engine, inversion):
    with pytest.raises(ValueError, match=r"embeddings have no words to align.*Engine\.style"):
        engine.edit(inversion, engine.encode(OTHER))
    with pytest.raises(ValueError, match="amount=nan"):
        engine.style(inversion, OTHER, amount=float("nan"))
    with pytest.raises(NonFiniteError):
        engine.generate(PROMPT, num_inference_steps=2, guidance_scale=1e38)
