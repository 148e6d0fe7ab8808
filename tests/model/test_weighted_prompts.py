"""`(word:1.3)` in a prompt, on request: what it weighs, and how words are found beside it."""

import numpy as np
import pytest
import torch

import pivotal
from pivotal.errors import PivotalError
from pivotal.model.load import load
from pivotal.model.weighting import read_weights


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a cat", "a cat", {}),
        ("a (red:1.5) cat", "a red cat", {"red": 1.5}),
        ("a (red: .5 ) cat", "a red cat", {"red": 0.5}),
        ("a (red cat)", "a red cat", {"red cat": 1.1}),
        ("(a (red:2) cat:1.5)", "a red cat", {"a ": 1.5, "red": 3.0, " cat": 1.5}),
        ("((red)) cat", "red cat", {"red": 1.1 * 1.1}),
        (r"a \(red\:1.5\) cat\\", "a (red:1.5) cat\\", {}),
        (r"(a smile \:\) here:2)", "a smile :) here", {"a smile :) here": 2.0}),
        ("[red:1.5] cat:2 C:\\x", "[red:1.5] cat:2 C:\\x", {}),
        ("(style: oil)", "style: oil", {"style: oil": 1.1}),
        ("a () cat", "a  cat", {}),
    ],
)
def test_the_syntax_is_taken_out_and_weighs_what_it_encloses(prompt, text, weights):
    found, each = read_weights(prompt)
    assert found == text
    wanted = np.ones(len(text))
    for part, weight in weights.items():
        start = text.index(part)
        wanted[start : start + len(part)] = weight
    np.testing.assert_allclose(each, wanted)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a (red cat", r"bracket at '\(red cat' .* no partner; write \\\("),
        ("a red:1.2) cat", r"bracket at '\) cat' .* no partner; write \\\)"),
        ("a (red:11) cat", "weight '11' in the prompt is none from 0 to 10"),
        ("a (red:-1) cat", "weight '-1' "),
        ("a (red:1.2.3) cat", "weight '1.2.3' "),
    ],
)
def test_what_can_not_be_read_is_refused_in_a_sentence(prompt, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_weights(prompt)


@pytest.fixture(params=["sd1", "sdxl"])
def text(request, sd_folder, sdxl_folder):
    return load({"sd1": sd_folder, "sdxl": sdxl_folder}[request.param], family=request.param).text


def test_a_token_goes_that_many_times_as_far_from_the_empty_prompts(text):
    plain, empty = text.encode(["a red cat"]), text.encode([""])
    (place,) = text.tokens("a red cat").find("red")
    text.weighted = True
    both = text.encode(["a (red:1.5) cat", "a red cat"])
    wanted = plain.hidden_states[0].double().clone()
    start = empty.hidden_states[0, place].double()
    wanted[place] = start + 1.5 * (wanted[place] - start)
    torch.testing.assert_close(both.hidden_states[0].double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.hidden_states[1], plain.hidden_states[0])
    if plain.pooled is not None:
        torch.testing.assert_close(both.pooled[0], plain.pooled[0])


def test_a_weight_of_one_changes_no_bit_and_of_none_says_nothing(text):
    plain, empty = text.encode(["a red cat"]), text.encode([""])
    text.weighted = True
    assert torch.equal(text.encode(["a (red:1.0) cat"]).hidden_states, plain.hidden_states)
    silent = text.encode(["(a red cat:0)"])
    places = text.tokens("a red cat").find("a red cat")
    torch.testing.assert_close(
        silent.hidden_states[0, list(places)], empty.hidden_states[0, list(places)]
    )


def test_each_chunk_is_weighted_in_its_place(text):
    text.weighted = True
    room = text.max_length - 2
    short = text.encode(["a (dog:2)"])
    text.take_long_prompts(2)
    both = text.encode(["a " * room + "a (dog:2)"])
    torch.testing.assert_close(both.hidden_states[:, room + 2 :], short.hidden_states)


def test_without_the_option_brackets_are_text(text):
    prompt = "a (red:2)"
    found = text.tokens(prompt)
    assert found.prompt == prompt
    assert found.weights == ()
    text.weighted = True
    assert text.tokens(prompt).ids != found.ids


def test_edits_see_the_words_and_inversions_know_the_option():
    engine, plain = (pivotal.Engine.load("shapes", weighted_prompts=each) for each in (True, False))
    assert engine.model.fingerprint != plain.model.fingerprint
    assert engine.model.additions == ["weighted prompts"]
    source = "a (red:1.3) circle on a gray background"
    picture = np.full((64, 64, 3), 90, np.uint8)
    inversion = engine.invert(picture, source, method="ddim", num_inference_steps=2)
    weighted, unweighted = (
        engine.edit(inversion, f"a {word} circle on a gray background")
        for word in ("(blue:2)", "blue")
    )
    assert weighted.kinds == unweighted.kinds == ["swap"]
    assert not torch.equal(weighted.latents[1], unweighted.latents[1])
    assert torch.equal(weighted.latents[0], unweighted.latents[0])
    stronger = engine.edit(inversion, source.replace("1.3", "2"))
    assert not torch.equal(stronger.latents[1], stronger.latents[0])
    with pytest.raises(PivotalError, match="model"):
        plain.edit(inversion, "a blue circle on a gray background")


def test_exported_networks_take_no_weights():
    with pytest.raises(ValueError, match="weighted_prompts with backend 'onnx'"):
        pivotal.Engine.load("shapes", weighted_prompts=True, backend="onnx")
