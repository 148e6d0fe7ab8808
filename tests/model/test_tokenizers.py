from itertools import pairwise

import pytest

from pivotal.errors import ModelError
from pivotal.model.tokenizers import ClipTokenizer, StandInTokenizer

PROMPTS = [
    "",
    "a cat",
    "The  RED   Cat, and\tthe dog!",
    "  cat's 42 dogs... ",
    "unmergeable words",
    "Ünïcode 猫 cat",
]


@pytest.fixture(scope="module", params=["clip", "stand-in"])
def tokenizer(request, sd_folder):
    if request.param == "clip":
        return ClipTokenizer(sd_folder / "tokenizer", limit=77)
    return StandInTokenizer(49408, 20)


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt.isascii()])
def test_spans_cut_the_prompt_into_exactly_its_tokens(tokenizer, prompt):
    tokens = tokenizer.tokens(prompt)
    spans = tokens.spans[1 : tokens.length - 1]
    assert "".join(prompt[start:end] for start, end in spans) == "".join(prompt.split())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert tokens.spans[0] is None
    assert set(tokens.spans[tokens.length - 1 :]) == {None}
    assert len(tokens.ids) == len(tokens.spans) == tokenizer.max_length == 20


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_that_diffusers_would_pass(sd_folder, sdxl_folder, prompt):
    from transformers import CLIPTokenizer

    for folder in (sd_folder / "tokenizer", sdxl_folder / "tokenizer_2"):
        theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        expected = theirs(prompt, padding="max_length", max_length=20, truncation=True).input_ids
        assert list(ClipTokenizer(folder, limit=20).tokens(prompt).ids[:20]) == expected[:20]


def test_a_word_is_its_tokens_and_case_does_not_matter(tokenizer):
    tokens = tokenizer.tokens("a Unicorn, a dog")
    (word,) = [word for word in tokens.words() if word.text == "Unicorn"]
    assert len(word.tokens) >= 2
    assert tokens.find("unicorn") == word.tokens
    lower = tokenizer.tokens("a unicorn, a dog")
    assert lower.ids == tokens.ids
    assert lower.spans == tokens.spans


def test_a_character_of_several_tokens_spans_it_each_time(sd_folder):
    tokens = ClipTokenizer(sd_folder / "tokenizer", limit=20).tokens("猫 cat")
    assert tokens.find("猫") == (1, 2, 3)  # three bytes
    assert tokens.find("cat") == (4,)


def test_a_prompt_that_is_too_long_raises_and_names_what_would_be_lost(tokenizer):
    fits = " ".join(["cat"] * 18)
    assert tokenizer.tokens(fits).length == 20
    sentence = "21 tokens.* takes 20: 'dog' and what follows.*shorten"
    with pytest.raises(ValueError, match=sentence):
        tokenizer.tokens(fits + " dog")
    with pytest.raises(ValueError, match="'unbelievable end of' and"):
        tokenizer.tokens(" ".join(["cat"] * 17) + " unbelievable end of this")


def test_the_shorter_limit_counts(sd_folder):
    assert ClipTokenizer(sd_folder / "tokenizer", limit=12).max_length == 12


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no vocab\.json"):
        ClipTokenizer(tmp_path, limit=77)
    (tmp_path / "vocab.json").write_text("not json")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ModelError, match="can't be read"):
        ClipTokenizer(tmp_path, limit=77)


def test_stand_in_ids_are_stable_and_within_the_vocabulary():
    tokens = StandInTokenizer(49408, 10).tokens("watercolour cat cat")
    assert tokens.ids[0] == 49406
    assert tokens.ids[5:] == (49407,) * 5
    assert tokens.ids[3] == tokens.ids[4] != tokens.ids[1]
    assert all(0 <= token < 49406 for token in tokens.ids[1:5])
    assert StandInTokenizer(49408, 10).tokens("watercolour cat cat") == tokens
    with pytest.raises(ValueError, match="vocabulary=2"):
        StandInTokenizer(2, 10)
