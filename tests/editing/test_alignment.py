import string

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baselines.alignment import refinement_alignment, replacement_mapper
from pivotal.editing.alignment import align, choose
from pivotal.tokens import Tokens

# Few words, so that they repeat; up to four letters a token, so of one to three tokens.
WORDS = st.sampled_from(["a", "cat", "dog", "tabby", "porcupine", "don't", "black-and-white", "é2"])
MARKS = st.sampled_from(["", "", "", ",", ".", "!?", " -"])


def prompts(words):
    return st.lists(st.tuples(words, MARKS), min_size=1, max_size=6).map(
        lambda pairs: " ".join(word + mark for word, mark in pairs)
    )


@st.composite
def swapped(draw):
    """A prompt, and the same one with words exchanged: not its punctuation, not their order."""
    pairs = draw(st.lists(st.tuples(WORDS, MARKS, st.none() | WORDS), min_size=1, max_size=6))
    source = " ".join(word + mark for word, mark, _ in pairs)
    return source, " ".join((other or word) + mark for word, mark, other in pairs)


def span(word):
    assert list(word.tokens) == list(range(word.tokens[0], word.tokens[-1] + 1))
    return word.tokens[0], word.tokens[-1] + 1


def used(tokens):
    return tokens.ids[: tokens.length]


@settings(deadline=None, max_examples=150)
@given(pair=swapped(), length=st.sampled_from([30, 41, 77]))
def test_swaps_are_the_references(tokenize, pair, length):
    source, target = (tokenize(prompt, length=77) for prompt in pair)
    assume(max(source.length, target.length) <= length)
    source, target = (tokenize(prompt, length=length) for prompt in pair)
    alignment = align(source, target, "swap")
    words = zip(source.words(), target.words(), strict=True)
    swaps = [(span(a), span(b)) for a, b in words if a.text != b.text]
    expected = replacement_mapper(used(source), used(target), swaps, length, "shifted")
    assert torch.equal(alignment.mapper, expected.float())
    assert torch.equal(alignment.shared, (expected.sum(dim=0) > 0).float())
    assert [(span(a), span(b)) for a, b in zip(*alignment.changed, strict=True)] == swaps


@settings(deadline=None, max_examples=150)
@given(first=prompts(WORDS), second=prompts(WORDS), length=st.sampled_from([41, 77]))
def test_refinements_are_the_references(tokenize, first, second, length):
    source, target = tokenize(first, length=77), tokenize(second, length=77)
    assume(max(source.length, target.length) <= length)
    source, target = tokenize(first, length=length), tokenize(second, length=length)
    alignment = align(source, target, "refine")
    index, aligned = refinement_alignment(used(source), used(target), length, "shifted")
    # A longer source has less padding than its target; ours goes on with the last of it.
    reached = length - max(0, source.length - target.length)
    assert torch.equal(alignment.shared[:reached], aligned[:reached].float())
    assert alignment.shared[reached:].all()
    index[reached:] = length - 1
    assert torch.equal(alignment.mapper.sum(dim=0), alignment.shared)
    paired = alignment.shared.bool()
    assert torch.equal(alignment.mapper.argmax(dim=0)[paired], index[paired])


@settings(deadline=None, max_examples=50)
@given(prompt=prompts(WORDS))
@pytest.mark.parametrize("kind", ["swap", "refine", "reweight"])
def test_a_prompt_aligns_with_itself_token_by_token(tokenize, kind, prompt):
    tokens = tokenize(prompt, length=77)
    alignment = align(tokens, tokens, kind)
    assert torch.equal(alignment.mapper, torch.eye(77))
    assert alignment.shared.all()
    assert alignment.changed == ((), ())


def test_of_a_repeated_word_the_first_is_the_sources(tokenize):
    alignment = align(tokenize("a cat"), tokenize("a cat, a cat"), "refine")
    assert alignment.shared[:7].tolist() == [1, 1, 1, 0, 0, 0, 1]


def test_a_split_word_shares_its_attention_and_a_merged_one_adds_it_up(tokenize):
    one, three = tokenize("a cat, here"), tokenize("a porcupine, here")
    split, merged = align(one, three, "swap").mapper, align(three, one, "swap").mapper
    torch.testing.assert_close(split[2, 2:5], torch.full((3,), 1 / 3))
    assert merged[2:5, 2].tolist() == [1, 1, 1]
    assert split[3, 5] == split[4, 6] == split[5, 7] == 1  # comma, here, end
    assert merged[5, 3] == merged[6, 4] == merged[7, 5] == 1


def test_padding_without_a_counterpart_keeps_its_own_attention(tokenize):
    one, three = tokenize("a cat"), tokenize("a porcupine")
    merged, split = align(three, one, "swap"), align(one, three, "swap")
    assert merged.shared.tolist() == [1] * 14 + [0, 0]
    assert merged.mapper[:, 14:].sum() == 0
    assert split.shared.all()
    assert split.mapper[14:].sum() == 0  # the source's last padding goes nowhere


def test_a_swap_with_punctuation_changed_pairs_what_it_can(tokenize):
    """A mark without a counterpart keeps its own attention, and the words after it still meet."""
    alignment = align(tokenize("cat, here"), tokenize("dog here"), "swap")
    assert alignment.mapper[1, 1] == alignment.mapper[3, 2] == alignment.mapper[4, 3] == 1
    assert alignment.mapper[2].sum() == 0
    alignment = align(tokenize("cat here"), tokenize("dog, here"), "swap")
    assert alignment.mapper[1, 1] == alignment.mapper[2, 3] == alignment.mapper[3, 4] == 1
    assert alignment.shared[:5].tolist() == [1, 1, 0, 1, 1]


def test_words_that_differ_are_told(tokenize):
    source, target = tokenize("a Red tabby, here"), tokenize("a red porcupine, there")
    gone, new = align(source, target, "swap").changed
    assert [word.text for word in gone] == ["tabby", "here"]
    assert [word.text for word in new] == ["porcupine", "there"]
    gone, new = align(source, tokenize("a tabby, fluffy and red"), "refine").changed
    assert [word.text for word in gone] == ["Red", "here"]
    assert [word.text for word in new] == ["fluffy", "and", "red"]


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("a red cat", "a red cat", "reweight"),
        ("a red cat", "A RED cat", "reweight"),
        ("a red cat", "a red, cat", "swap"),
        ("a red cat", "a red dog", "swap"),
        ("a red cat", "a red porcupine", "swap"),
        ("a red cat on the mat", "a blue dog on the bed", "swap"),  # half of them stay
        ("a red cat", "the blue dog", "refine"),
        ("a red cat", "a fluffy red cat", "refine"),
        ("a fluffy red cat", "a red cat", "refine"),
        ("cat on mat", "mat on cat", "refine"),
        ("", "a cat", "refine"),
    ],
)
def test_the_kind_is_chosen_from_the_prompts(tokenize, source, target, kind):
    assert choose(tokenize(source), tokenize(target)) == kind
    align(tokenize(source), tokenize(target), kind)  # and it is possible


def test_prompts_that_do_not_allow_a_kind_are_refused(tokenize):
    with pytest.raises(ValueError, match=r"as many words.*has 3.*has 4.*use kind 'refine'"):
        align(tokenize("a red cat"), tokenize("a fluffy red cat"), "swap")
    with pytest.raises(ValueError, match="re-weighting alone keeps the prompt; 'a dog' differs"):
        align(tokenize("a cat"), tokenize("a dog"), "reweight")


TEXT = "Cat's eyes: a CAT, two cats, a tabby cat and a porcupine."
# cat 1, ' 2, s 3, eyes 4, : 5, a 6, CAT 7, "," 8, two 9, cats 10, "," 11, a 12, tabb 13, y 14,
# cat 15, and 16, a 17, porc 18, upin 19, e 20, . 21


@pytest.mark.parametrize(
    ("phrase", "found"),
    [
        ("cat", (1, 7, 15)),
        ("Cat", (1, 7, 15)),
        ("cat#1", (1,)),
        ("cat#2", (7,)),
        ("CAT#3", (15,)),
        ("cats", (10,)),
        ("cat's", (1, 2, 3)),
        ("tabby", (13, 14)),
        ("tabby cat", (13, 14, 15)),
        ("  TABBY   cat ", (13, 14, 15)),
        ("a", (6, 12, 17)),
        ("a#2", (12,)),
        ("porcupine", (18, 19, 20)),
        ("cat, two", (7, 8, 9)),
        (":", (5,)),
        (",#2", (11,)),
        (", a tabby", (11, 12, 13, 14)),
        ("porcupine.", (18, 19, 20, 21)),
    ],
)
def test_words_and_phrases_are_found(tokenize, phrase, found):
    assert tokenize(TEXT, length=30).find(phrase) == found


@pytest.mark.parametrize(
    "phrase",
    ["dog", "ca", "porc", "cat#4", "cat#0", "cat#x", "cat#²", "cat#-1", "cat two", "", " "],
)
def test_what_is_not_in_the_prompt_is_named_beside_what_is(tokenize, phrase):
    with pytest.raises(ValueError) as caught:
        tokenize(TEXT, length=30).find(phrase)
    message = str(caught.value)
    assert message.startswith(f"{phrase!r} is not in the prompt")
    assert TEXT in message
    assert "'porcupine'" in message


def test_words_are_runs_less_their_punctuation(tokenize):
    words = tokenize("(A) black-and-white cat's 'toy', 3.5 m — é!", length=40).words()
    assert [word.text for word in words] == [
        "A", "black-and-white", "cat's", "toy", "3.5", "m", "é"
    ]  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(text=st.text(string.ascii_letters + string.digits + " .,'-#é", max_size=25))
def test_every_word_is_found_by_its_own_text(tokenize, text):
    tokens = tokenize(text, length=30)
    for word in tokens.words():
        if "#" not in word.text:
            assert set(word.tokens) <= set(tokens.find(word.text))


def test_a_prompt_without_words_says_so():
    empty = Tokens("", (1, 2, 2), (None, None, None), 2)
    assert empty.words() == []
    with pytest.raises(ValueError, match="it has no words"):
        empty.find("cat")
