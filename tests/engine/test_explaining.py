"""The engine's explanation is of the edit that it would run."""

import pytest

import pivotal

PROMPT = "a red circle on a gray background"
BLUE = "a blue circle on a gray background"
STEPS = 4


def test_the_explanation_agrees_with_the_edit_and_runs_nothing(engine, inversion):
    options = {"blend": "auto", "cross_replace_steps": 0.5}
    before = engine.denoiser.rows_forward
    found = engine.explain(PROMPT, BLUE, num_inference_steps=STEPS, **options)
    assert engine.denoiser.rows_forward == before
    edited = engine.edit(inversion, BLUE, **options)
    assert found.kind == edited.kinds[0]
    assert found.touched == edited.touched[0]
    assert found.blend == {"source": ("red",), "target": ("blue",)}
    timesteps = inversion.schedule["timesteps"]
    assert found.cross["default"].timesteps == (timesteps[0], timesteps[1])


def test_an_edit_may_be_given_as_an_edit(engine):
    edit = pivotal.Edit(BLUE, self_replace_steps=0.2)
    assert engine.explain(PROMPT, edit).self_attention.fractions == (0.0, 0.2)
    with pytest.raises(ValueError, match="an Edit has its own"):
        engine.explain(PROMPT, edit, blend="auto")


def test_steps_that_the_model_does_not_have_are_refused(engine):
    with pytest.raises(ValueError, match="steps=0"):
        engine.explain(PROMPT, BLUE, num_inference_steps=0)


def test_a_masks_word_is_looked_for_in_the_source_alone(engine):
    with pytest.raises(ValueError, match="'blue' is not in the prompt 'a red circle"):
        engine.explain(PROMPT, BLUE, mask_words=("blue",))
