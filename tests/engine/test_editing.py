"""Edits from one inversion, one target or many."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pivotal
from pivotal.errors import EditWithoutEffectError, InversionFileError, ModelError

PROMPT = "a red circle on a gray background"
BLUE = "a blue circle on a gray background"
STEPS = 4


def test_an_edit_to_the_same_prompt_changes_nothing(engine, inversion):
    edited = engine.edit(inversion, PROMPT)
    found = engine.reconstruct(inversion)
    assert np.abs(edited.pictures[0].astype(int) - found.picture).max() <= 1
    assert np.abs(edited.reconstruction.astype(int) - found.picture).max() <= 1


def test_an_edit_changes_the_picture(engine, inversion):
    edited = engine.edit(inversion, BLUE)
    assert np.abs(edited.pictures[0].astype(int) - edited.reconstruction).max() > 20


def test_several_targets_at_once_equal_each_alone(engine, inversion):
    targets = [BLUE, "a large red circle on a gray background"]
    together = engine.edit(inversion, targets, blend="auto")
    assert together.kinds == ["swap", "refine"]
    for index, target in enumerate(targets):
        alone = engine.edit(inversion, target, blend="auto")
        assert np.abs(alone.pictures[0].astype(int) - together.pictures[index]).max() <= 2


def test_a_user_mask_keeps_the_outside(engine, inversion):
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :32] = True
    edit = pivotal.Edit(BLUE, mask=mask)
    edited = engine.edit(inversion, edit)
    outside = (edited.latents[1] - edited.latents[0]).abs()[:, :, 8:]
    assert float(outside.max()) == 0
    assert edited.outside_mask_psnr[0] is not None


def test_a_mask_of_another_size_is_refused(engine, inversion):
    mask = torch.ones(96, 128, dtype=torch.bool)
    edit = pivotal.Edit(BLUE, mask=mask)
    with pytest.raises(ValueError, match=r"is \[96, 128\]; the inverted picture is \[64, 64\]"):
        engine.edit(inversion, edit)


def test_an_edit_reports_what_it_touched_and_where_its_words_look(engine, inversion):
    edited = engine.edit(inversion, BLUE, blend="auto")
    assert set(edited.touched[0]) == {"cross", "self", "blend"}
    assert all(reach.layers and reach.steps for reach in edited.touched[0].values())
    assert list(edited.heat_maps[0]) == ["blue"]
    assert edited.images[0].size == (64, 64)


def test_an_edit_that_would_do_nothing_is_refused(engine, inversion):
    with pytest.raises(EditWithoutEffectError, match="touches no layer"):
        engine.edit(
            inversion, BLUE,
            cross_replace_steps=0.0, self_replace_steps=0.0,
        )  # fmt: skip


def test_options_beside_an_edit_are_refused_not_dropped(engine, inversion):
    edit = pivotal.Edit(BLUE)
    with pytest.raises(ValueError, match="blend are for targets given as text"):
        engine.edit(inversion, edit, blend="auto")


def test_a_word_that_is_nowhere_is_named(engine, inversion):
    with pytest.raises(ValueError, match="'unicorn' is in neither prompt"):
        engine.edit(inversion, BLUE, blend=("unicorn",))


def test_the_edit_brings_the_source_back_beside_it(engine, inversion):
    edited = engine.edit(inversion, BLUE)
    found = engine.reconstruct(inversion)
    assert edited.source.psnr == pytest.approx(found.psnr, abs=0.01)
    assert edited.source.vae_psnr == found.vae_psnr


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_guidance_that_is_no_number_is_refused_before_the_run(engine, inversion, scale):
    with pytest.raises(ValueError, match="guidance_scale"):
        engine.edit(inversion, BLUE, guidance_scale=scale)


def test_an_inversion_of_another_model_is_refused(engine, inversion):
    foreign = replace(inversion, fingerprint="0" * 64, model="elsewhere")
    with pytest.raises(ModelError, match="elsewhere"):
        engine.edit(foreign, BLUE)


def test_more_targets_than_one_batch_holds_equal_each_alone(engine, inversion):
    colours = ("blue", "green", "yellow", "white", "black", "purple", "orange", "pink", "brown")
    targets = [f"a {colour} circle on a gray background" for colour in colours]
    together = engine.edit_many(inversion, targets)
    assert len(together.pictures) == len(together.heat_maps) == len(together.touched) == 9
    assert together.latents.shape[0] == 10
    alone = engine.edit(inversion, targets[8])  # the only one of the second batch
    first = engine.edit(inversion, targets[:1])
    for index, edited in ((0, first), (8, alone)):
        assert np.abs(edited.pictures[0].astype(int) - together.pictures[index]).max() <= 2
        assert torch.allclose(edited.latents[1], together.latents[1 + index], atol=1e-3)


def test_a_wrong_target_among_many_is_refused_before_anything_runs(engine, inversion):
    before = engine.denoiser.rows_forward
    targets = [BLUE] * 9 + [pivotal.Edit(BLUE, weights={"unicorn": 2.0})]
    with pytest.raises(ValueError, match="'unicorn' is not in the prompt"):
        engine.edit_many(inversion, targets)
    assert engine.denoiser.rows_forward == before


@pytest.mark.parametrize("targets", [BLUE, None, 5, pivotal.Edit(BLUE)])
def test_what_is_no_list_of_targets_is_refused(engine, inversion, targets):
    with pytest.raises(ValueError, match="a list is expected, of prompts or Edits"):
        engine.edit_many(inversion, targets)


def test_no_target_is_refused(engine, inversion):
    with pytest.raises(ValueError, match="at least one target"):
        engine.edit_many(inversion, [])


def test_an_unknown_option_of_an_edit_is_named(engine, inversion):
    with pytest.raises(ValueError, match="no option 'sharpness'; accepted are kind, cross"):
        engine.edit(inversion, BLUE, sharpness=3)


def test_an_inversion_of_another_schedule_is_refused(engine, inversion):
    schedule = {**inversion.schedule, "timestep_spacing": "trailing"}
    with pytest.raises(InversionFileError, match="timestep_spacing differ"):
        engine.edit(replace(inversion, schedule=schedule), BLUE)


def test_an_edit_from_a_file_is_the_edit_from_memory(engine, inversion, tmp_path):
    pivotal.write_inversion(inversion, tmp_path / "cat.safetensors")
    again = pivotal.read_inversion(tmp_path / "cat.safetensors")
    assert torch.equal(engine.edit(again, BLUE).latents, engine.edit(inversion, BLUE).latents)


@pytest.mark.parametrize("target", [3, None, b"a blue circle"])
def test_a_target_that_is_no_text_is_refused(engine, inversion, target):
    with pytest.raises(ValueError, match="a prompt or an Edit is expected"):
        engine.edit_many(inversion, [target])


def test_mutual_self_attention_alone_edits_and_says_where(engine, inversion):
    edit = pivotal.Edit(
        BLUE,
        cross_replace_steps=0.0,
        self_replace_steps=0.0,
        mutual=pivotal.MutualSelfAttention(start_step=1),
    )
    edited = engine.edit(inversion, edit)
    plain = engine.edit(inversion, BLUE)
    assert set(edited.touched[0]) == {"cross", "self", "mutual"}
    assert edited.touched[0]["mutual"].steps == STEPS - 1
    assert engine.explain(PROMPT, edit, num_inference_steps=STEPS).touched == edited.touched[0]
    assert not torch.allclose(edited.latents[1], plain.latents[1], atol=1e-2)
    assert torch.allclose(edited.latents[0], plain.latents[0], atol=1e-4)  # the source's own row
