"""An edit explained before it runs says what the run then does."""

import json

import pytest

from pivotal.editing.edit import Edit
from pivotal.editing.explanation import explain
from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.editing.routes import Layers
from pivotal.errors import EditWithoutEffectError
from pivotal.schedule import NoiseLevels, ScheduleConfig

LAYERS = Layers((1, 2, 4), (1, 2, 2, 4))
STEPS = 10


@pytest.fixture
def explained(tokenize):
    schedule = NoiseLevels(ScheduleConfig(steps_offset=1)).schedule(STEPS)

    def make(source, target, **options):
        edit = Edit(target, **options)
        return explain(tokenize(source), tokenize(target), edit, schedule, LAYERS)

    return make


def pairs(explanation):
    return [(pair.relation, pair.source, pair.target) for pair in explanation.words]


def test_a_swap_pairs_the_words_in_their_places(explained):
    found = explained("a cat on a sofa", "a dog on a sofa")
    assert found.kind == "swap"
    assert "as many words" in found.reason
    assert pairs(found) == [
        ("kept", "a", "a"), ("swapped", "cat", "dog"), ("kept", "on", "on"), ("kept", "a", "a"),
        ("kept", "sofa", "sofa"),
    ]  # fmt: skip


def test_a_refinement_tells_new_words_from_gone_ones_where_they_stand(explained):
    found = explained("a red cat on a sofa", "a cat asleep on a sofa today")
    assert found.kind == "refine"
    assert "6 words and the target 7" in found.reason
    assert pairs(found) == [
        ("kept", "a", "a"), ("gone", "red", None), ("kept", "cat", "cat"), ("new", None, "asleep"),
        ("kept", "on", "on"), ("kept", "a", "a"), ("kept", "sofa", "sofa"), ("new", None, "today"),
    ]  # fmt: skip


def test_a_word_that_comes_first_is_new_there(explained):
    assert pairs(explained("cat", "big cat"))[0] == ("new", None, "big")


def test_equal_prompts_are_reweighted(explained):
    found = explained("a red cat", "a red cat", weights={"red": 2.0})
    assert found.kind == "reweight"
    assert found.weights == {"red": 2.0}
    assert all(relation == "kept" for relation, _, _ in pairs(found))


def test_few_words_kept_are_refined_and_the_reason_says_so(explained):
    found = explained("one two three", "four two six")
    assert found.kind == "refine"
    assert "fewer than half" in found.reason


def test_a_kind_that_was_asked_for_is_kept_and_what_would_have_been_chosen_is_said(explained):
    found = explained("a cat", "a dog", kind="refine")
    assert found.kind == "refine"
    assert "'swap' would have been chosen" in found.reason


def test_tokens_take_the_sources_in_shares(explained):
    """Words of one token and of three: each new token has a third of the old one's attention."""
    found = explained("a cat sat", "a porcupine sat")
    taken = {token.target: token.sources for token in found.tokens}
    assert list(taken) == ["a", "porc", "upin", "e", "sat"]
    for part in ("porc", "upin", "e"):
        ((text, place, share),) = taken[part]
        assert (text, place) == ("cat", 2)
        assert share == pytest.approx(1 / 3)
    assert taken["sat"] == (("sat", 3, 1.0),)


def test_a_new_token_keeps_its_own_attention(explained):
    found = explained("a cat", "a big cat")
    assert {token.target: token.sources for token in found.tokens}["big"] == ()


def test_windows_are_told_as_fractions_steps_and_timesteps(explained):
    found = explained("a cat", "a dog", cross_replace_steps={"default": 0.8, "dog": (0.2, 0.5)})
    assert found.cross["default"].fractions == (0.0, 0.8)
    assert found.cross["default"].steps == (0, 8)
    assert found.cross["default"].timesteps == (901.0, 201.0)
    assert found.cross["dog"].steps == (2, 5)
    assert found.cross["dog"].timesteps == (701.0, 501.0)
    assert found.self_attention.steps == (0, 4)


def test_a_window_that_holds_no_step_has_no_timesteps(explained):
    found = explained("a cat", "a dog", self_replace_steps=0.0)
    assert found.self_attention.timesteps is None
    assert found.layers["self"] == ()
    assert found.touched["self"].layers == 0


def test_the_layers_are_those_that_the_edit_reaches(explained):
    found = explained("a cat", "a dog")
    assert found.layers == {"cross": (1, 2, 2, 4), "self": (2, 4)}
    assert (found.touched["cross"].layers, found.touched["cross"].steps) == (4, 8)
    assert (found.touched["self"].layers, found.touched["self"].steps) == (2, 4)


def test_mutual_self_attention_is_told_where_it_is_asked_for(explained):
    found = explained("a cat", "a dog", mutual=MutualSelfAttention(start_step=3, start_layer=1))
    assert (found.mutual.steps, found.mutual.timesteps) == ((3, 10), (601.0, 1.0))
    assert found.mutual.fractions == (0.3, 1.0)
    assert found.layers["mutual"] == (2, 4)
    assert explained("a cat", "a dog").mutual is None


def test_blend_words_are_named_by_prompt(explained):
    found = explained("a cat on a sofa", "a dog on a sofa", blend="auto", subtract=("sofa",))
    assert found.blend == {"source": ("cat",), "target": ("dog",)}
    assert found.subtract == {"source": ("sofa",), "target": ("sofa",)}
    assert found.blend_steps.steps == (2, 10)
    assert explained("a cat", "a dog").blend_steps is None


def test_what_an_edit_would_refuse_is_refused(explained):
    with pytest.raises(ValueError, match="'unicorn' is in neither prompt"):
        explained("a cat", "a dog", blend=("unicorn",))
    with pytest.raises(EditWithoutEffectError, match="touches no layer"):
        explained("a cat", "a dog", cross_replace_steps=0.0, self_replace_steps=0.0)


def test_the_record_is_json(explained):
    found = explained("a cat on a sofa", "a dog on a sofa", blend="auto", weights={"dog": 2.0})
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["kind"] == "swap"
    assert record["words"][1] == {"relation": "swapped", "source": "cat", "target": "dog"}
    assert record["cross"]["default"]["steps"] == [0, 8]
