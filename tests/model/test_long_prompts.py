"""Prompts over the text encoder's length: each chunk by itself, and words that know theirs."""

import numpy as np
import pytest
import torch

import pivotal
from pivotal.editing.alignment import align
from pivotal.model.load import load
from pivotal.model.text import TextEncoder
from pivotal.model.tokenizers import StandInTokenizer
from pivotal.runtime.torch_denoiser import TorchDenoiser

LONG = "a b c d e f g h i j k l"
LENGTH = 8  # six tokens a chunk


def tokenizer(chunks, length=LENGTH):
    found = StandInTokenizer(1000, length)
    found.chunks = chunks
    return found


def test_each_chunk_has_a_start_an_end_and_padding():
    found = tokenizer(3).tokens("a b c d e f g h")
    start, end = 998, 999
    assert found.ids[0::LENGTH] == (start,) * 3
    assert found.ids[LENGTH - 1 :: LENGTH] == (end,) * 3
    assert found.find("f") == (6,)
    assert found.find("g") == (9,)
    assert found.find("f g") == (6, 9)
    assert found.ids[11:16] == (end,) * 5
    assert (found.length, found.chunks, len(found.ids)) == (12, 3, 24)


def test_a_word_goes_whole_into_the_next_chunk():
    found = tokenizer(2).tokens("a b c d elephantine")  # two tokens
    assert found.find("elephantine") == (5, 6)
    found = tokenizer(2).tokens("a b c d e elephantine")
    assert found.find("elephantine") == (9, 10)
    longer_than_a_chunk = tokenizer(2).tokens("a " + "elephant" * 5)
    assert longer_than_a_chunk.find("elephant" * 5)[:6] == (2, 3, 4, 5, 6, 9)


def test_what_does_not_fit_is_refused_and_named():
    with pytest.raises(
        ValueError, match=r"'g h i' and what follows would be lost; .*long_prompts=2"
    ):
        tokenizer(1).tokens(LONG)
    with pytest.raises(ValueError, match=r"'m n' and what follows .* long_prompts=3"):
        tokenizer(2).tokens(LONG + " m n")


@pytest.fixture
def chunked():
    return lambda prompt: tokenizer(2).tokens(prompt)


def test_a_swap_in_the_second_chunk_takes_the_attention_of_its_place(chunked):
    found = align(chunked(LONG), chunked(LONG.replace("h", "z")), "swap")
    assert torch.equal(found.mapper, torch.eye(2 * LENGTH))
    assert [word.tokens for word in found.changed[1]] == [(10,)]


def test_a_swap_to_more_tokens_follows_words_over_the_chunks_border(chunked):
    source, target = chunked("a b c d e f g"), chunked("a b c elephantine e f g")
    found = align(source, target, "swap")
    for word in "abcefg":
        (row,), (column,) = source.find(word), target.find(word)
        assert found.mapper[row, column] == 1
    assert found.mapper[4, list(target.find("elephantine"))].tolist() == [0.5, 0.5]
    assert found.mapper[0, 0] == found.mapper[LENGTH, LENGTH] == 1  # starts
    assert found.mapper.sum(dim=0).max() == 1


def test_a_refinement_over_the_border_keeps_words_and_starts(chunked):
    source, target = chunked("a b c d e f g"), chunked("a b c new d e f g")
    found = align(source, target, "refine")
    for word in "abcdefg":
        (row,), (column,) = source.find(word), target.find(word)
        assert found.mapper[row, column] == 1
    assert found.shared[list(target.find("new"))].tolist() == [0]
    assert found.mapper[LENGTH, LENGTH] == 1
    assert [word.text for word in found.changed[1]] == ["new"]


@pytest.fixture(params=["sd1", "sdxl"])
def text(request, sd_folder, sdxl_folder):
    return load({"sd1": sd_folder, "sdxl": sdxl_folder}[request.param], family=request.param).text


def test_a_chunk_is_encoded_as_if_alone(text):
    room = text.max_length - 2
    words = ["a"] * room + ["dog"]
    first, second = text.encode([" ".join(words[:room])]), text.encode(["dog"])
    text.take_long_prompts(2)
    both = text.encode([" ".join(words), "dog"])
    torch.testing.assert_close(
        both.hidden_states[:1], torch.cat([first.hidden_states, second.hidden_states], dim=1)
    )
    assert both.hidden_states.shape[1] == text.max_length
    if both.pooled is not None:
        torch.testing.assert_close(both.pooled, torch.cat([first.pooled, second.pooled]))
    assert isinstance(text, TextEncoder)


def test_a_number_of_chunks_that_is_none_is_refused(text):
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="a whole number of chunks"):
            text.take_long_prompts(wrong)


@pytest.mark.slow
def test_an_edit_in_the_second_chunk_acts_and_the_first_is_as_it_was():
    engine = pivotal.Engine.load("shapes", long_prompts=2)
    assert engine.model.fingerprint != pivotal.Engine.load("shapes").model.fingerprint
    assert engine.model.additions == ["prompts in 2 chunks"]
    source = ", ".join(["a red circle on a gray background"] * 12)
    target = source[: -len("gray background")] + "blue background"
    picture = np.full((64, 64, 3), 90, np.uint8)
    inversion = engine.invert(
        picture, source, method="null-text", num_inference_steps=2, options={"inner_steps": 1}
    )
    length = engine.model.text.max_length
    assert inversion.inverted.stored["null_embeddings"].shape[2] == length
    (changed,) = engine.tokens(target).words()[-2].tokens
    assert changed > length // 2
    edited = engine.edit(inversion, target)
    assert not torch.equal(edited.latents[0], edited.latents[1])


def test_exported_networks_take_one_chunk():
    with pytest.raises(ValueError, match="long_prompts=2 with backend 'onnx'"):
        pivotal.Engine.load("shapes", long_prompts=2, backend="onnx")


def test_networks_answer_two_and_three_chunks_with_routes(
    plain_unet, latents, prompts, swap_routes
):
    from pivotal.model.unet import RoutedUNet
    from pivotal.query import Denoise

    denoiser = TorchDenoiser(RoutedUNet(plain_unet(), word_map_downscale=2), "epsilon")
    for length in (154, 231):
        query = Denoise(
            latents(2),
            torch.tensor([5.0, 700.0]),
            torch.tensor([0.9, 0.2], dtype=torch.float64),
            prompts(2, length=length),
            swap_routes(denoiser.unet, length=length),
        )
        assert denoiser.answer(query).eps.isfinite().all()
