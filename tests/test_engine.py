"""The engine on the bundled model: small, real, few steps."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pivotal
from pivotal.errors import EditWithoutEffectError, InversionFileError, ModelError, NonFiniteError

PROMPT = "a red circle on a gray background"
STEPS = 8


@pytest.fixture(scope="module")
def engine():
    return pivotal.Engine.load("shapes")


@pytest.fixture(scope="module")
def picture():
    """A red disc on grey, drawn without the project's own scenes."""
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[(x - 30) ** 2 + (y - 34) ** 2 < 14**2] = (220, 40, 40)
    return pixels


@pytest.fixture(scope="module")
def inversion(engine, picture):
    return engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)


def test_reconstruction_at_guidance_1_nears_the_round_trip_as_steps_grow(engine, picture):
    distances = []
    for steps in (5, 20, 80):
        inversion = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=steps)
        found = engine.reconstruct(inversion, guidance_scale=1.0)
        distances.append(np.square(found.picture.astype(float) - found.round_trip).mean())
    assert distances[0] > distances[1] > distances[2]


def test_null_text_reconstructs_better_under_guidance_than_ddim(engine, picture, inversion):
    fitted = engine.invert(picture, PROMPT, method="null-text", num_inference_steps=STEPS)
    assert engine.reconstruct(fitted).psnr > engine.reconstruct(inversion).psnr + 3


def test_an_edit_to_the_same_prompt_changes_nothing(engine, inversion):
    edited = engine.edit(inversion, PROMPT)
    found = engine.reconstruct(inversion)
    assert np.abs(edited.pictures[0].astype(int) - found.picture).max() <= 1
    assert np.abs(edited.reconstruction.astype(int) - found.picture).max() <= 1


def test_an_edit_changes_the_picture(engine, inversion):
    edited = engine.edit(inversion, "a blue circle on a gray background")
    assert np.abs(edited.pictures[0].astype(int) - edited.reconstruction).max() > 20


def test_several_targets_at_once_equal_each_alone(engine, inversion):
    targets = ["a blue circle on a gray background", "a large red circle on a gray background"]
    together = engine.edit(inversion, targets, blend="auto")
    assert together.kinds == ["swap", "refine"]
    for index, target in enumerate(targets):
        alone = engine.edit(inversion, target, blend="auto")
        assert np.abs(alone.pictures[0].astype(int) - together.pictures[index]).max() <= 2


def test_a_user_mask_keeps_the_outside(engine, inversion):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :32] = True
    edit = pivotal.Edit("a blue circle on a gray background", mask=mask)
    edited = engine.edit(inversion, edit)
    outside = (edited.latents[1] - edited.latents[0]).abs()[:, :, 8:]
    assert float(outside.max()) == 0
    assert edited.outside_mask_psnr[0] is not None


def test_a_mask_of_another_size_is_refused(engine, inversion):
    mask = torch.ones(96, 128, dtype=torch.bool)
    edit = pivotal.Edit("a blue circle on a gray background", mask=mask)
    with pytest.raises(ValueError, match=r"is \[96, 128\]; the inverted picture is \[64, 64\]"):
        engine.edit(inversion, edit)


def test_an_edit_reports_what_it_touched_and_where_its_words_look(engine, inversion):
    edited = engine.edit(inversion, "a blue circle on a gray background", blend="auto")
    assert set(edited.touched[0]) == {"cross", "self", "blend"}
    assert all(reach.layers and reach.steps for reach in edited.touched[0].values())
    assert list(edited.heat_maps[0]) == ["blue"]
    assert edited.images[0].size == (64, 64)


def test_an_edit_that_would_do_nothing_is_refused(engine, inversion):
    with pytest.raises(EditWithoutEffectError, match="touches no layer"):
        engine.edit(
            inversion, "a blue circle on a gray background",
            cross_replace_steps=0.0, self_replace_steps=0.0,
        )  # fmt: skip


def test_options_beside_an_edit_are_refused_not_dropped(engine, inversion):
    edit = pivotal.Edit("a blue circle on a gray background")
    with pytest.raises(ValueError, match="blend are for targets given as text"):
        engine.edit(inversion, edit, blend="auto")


def test_a_word_that_is_nowhere_is_named(engine, inversion):
    with pytest.raises(ValueError, match="'unicorn' is in neither prompt"):
        engine.edit(inversion, "a blue circle on a gray background", blend=("unicorn",))


def test_the_report_counts_the_unet_rows(engine, picture, inversion):
    assert inversion.report["unet_rows"] == STEPS
    before = engine.denoiser.rows_forward
    fitted = engine.invert(
        picture, PROMPT, num_inference_steps=STEPS, options={"inner_steps": 3, "early_stop": 0,
        "early_stop_growth": 0},
    )  # fmt: skip
    counted = engine.denoiser.rows_forward - before
    assert counted == fitted.report["unet_rows"] <= STEPS * (1 + 1 + 3) + STEPS


def test_a_seed_gives_the_same_picture_alone_and_in_company(engine):
    prompts = ["a red circle on a gray background", "a blue square on a white background"]
    together = engine.generate(prompts, num_inference_steps=STEPS, seed=3)
    alone = engine.generate(prompts[1], num_inference_steps=STEPS, seed=4)
    assert together.seeds == [3, 4]
    assert np.abs(alone.pictures[0].astype(int) - together.pictures[1]).max() <= 1


def test_embeddings_that_are_not_finite_are_refused_where_they_arise(engine, picture):
    options = {"learning_rate": 1e38, "inner_steps": 2, "early_stop": 0}
    with pytest.raises(NonFiniteError, match="null-text inversion"):
        engine.invert(picture, PROMPT, num_inference_steps=2, options=options)


class Exclusive:
    """Passes everything on, and notes whether two threads ever asked at once."""

    def __init__(self, inner):
        self.name, self.answers, self.inner = inner.name, inner.answers, inner
        self.inside = threading.Lock()
        self.met = False

    def answer(self, query):
        if not self.inside.acquire(blocking=False):
            self.met = True
            return self.inner.answer(query)
        try:
            return self.inner.answer(query)
        finally:
            self.inside.release()


def test_threads_take_turns(engine, inversion):
    expected = engine.edit(inversion, "a blue circle on a gray background").pictures[0]
    denoiser = Exclusive(engine.denoiser)
    shared = pivotal.Engine(engine.model, denoiser)  # fresh: its first edit probes as well
    results = [None] * 3

    def work(index):
        results[index] = shared.edit(inversion, "a blue circle on a gray background").pictures[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not denoiser.met
    assert all(np.array_equal(result, expected) for result in results)


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


def test_the_edit_brings_the_source_back_beside_it(engine, inversion):
    edited = engine.edit(inversion, "a blue circle on a gray background")
    found = engine.reconstruct(inversion)
    assert edited.source.psnr == pytest.approx(found.psnr, abs=0.01)
    assert edited.source.vae_psnr == found.vae_psnr


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_guidance_that_is_no_number_is_refused_before_the_run(engine, inversion, scale):
    with pytest.raises(ValueError, match="guidance_scale"):
        engine.edit(inversion, "a blue circle on a gray background", guidance_scale=scale)


def test_guidance_given_twice_is_refused(engine, picture):
    with pytest.raises(ValueError, match="give it once"):
        engine.invert(picture, PROMPT, guidance_scale=5, options={"guidance_scale": 3})


def test_an_inversion_of_another_model_is_refused(engine, inversion):
    foreign = replace(inversion, fingerprint="0" * 64, model="elsewhere")
    with pytest.raises(ModelError, match="elsewhere"):
        engine.edit(foreign, "a blue circle on a gray background")


@pytest.mark.parametrize("kind", ["path", "pil", "numpy", "tensor"])
def test_images_of_every_kind_invert_alike(engine, picture, inversion, tmp_path, kind):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    given = {
        "path": tmp_path / "picture.png",
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
        ({"method": "magic"}, "method='magic' is unknown; accepted are ddim, null-text"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"options": {"speed": 2}}, "no option 'speed'"),
        ({"policy": "squash"}, "squash"),
        ({"size": (63, 64)}, "63"),
    ],
)
def test_wrong_input_is_named(engine, picture, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.invert(picture, PROMPT, **{"num_inference_steps": STEPS, **arguments})


def test_generating_from_no_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="at least one prompt"):
        engine.generate([])


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(inversion, picture):
    engine = pivotal.Engine.load("shapes", device="cuda")
    again = engine.invert(picture, PROMPT, method="ddim", num_inference_steps=STEPS)
    assert torch.allclose(again.inverted.noise.cpu(), inversion.inverted.noise, atol=2e-2)
    edited = engine.edit(inversion, "a blue circle on a gray background", blend="auto")
    assert np.isfinite(edited.latents.cpu().numpy()).all()
    assert engine.reconstruct(inversion).picture.shape == picture.shape  # from a file: on the CPU
