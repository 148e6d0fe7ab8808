"""The vocabulary that CLIP's towers share, as a library's wheel carries it, against published ids
and against byte-pair merging as the paper has it.
"""

import gzip
from itertools import pairwise

import pytest
import regex

from pivotal.model.tokenizers import ClipTokenizer
from pivotal.model.vocabulary import carried_file, clip_vocabulary

pytestmark = pytest.mark.skipif(
    carried_file() is None, reason="open_clip_torch, which carries the vocabulary, is not installed"
)
START, END = 49406, 49407
# as openai/clip-vit-large-patch14's tokenizer gives them, from its model card and documentation
PUBLISHED = {
    "": (),
    "a photo of a cat": (320, 1125, 539, 320, 2368),
    "a photo of a dog": (320, 1125, 539, 320, 1929),
    "a photograph of an astronaut riding a horse": (320, 8853, 539, 550, 18376, 6765, 320, 4558),
}
PROMPTS = [
    *PUBLISHED,
    "A Photo  of\ta CAT",
    "masterpiece, best quality, 1girl, (highly detailed:1.3)",
    "it's the artist's 42nd dog... wouldn't you say?!",
    "antidisestablishmentarianism supercalifragilistic",
    "trending on artstation, 8k, f/1.8",
    "ein Mädchen mit Hüten, über den Flüssen",
    "猫 и собака",
    "emoji 😀 and dashes - -- ---",
    "under_score #hash @at 100% $5",
]


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(clip_vocabulary(), 77)


@pytest.fixture(scope="module")
def merged():
    """Radford et al.'s encoder, in its own words: the merges' ranks, the pair of lowest rank first.

    ids: 256 bytes in the order of their letters, the same at a word's end, and the merges.
    """
    lines = gzip.decompress(carried_file().read_bytes()).decode().split("\n")[1:48895]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letter = {byte: chr(byte) for byte in shown}
    letter |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    order = [letter[byte] for byte in (*shown, *hidden)]
    names = order + [each + "</w>" for each in order] + ["".join(pair) for pair in ranks]
    ids = {name: number for number, name in enumerate(names)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")

    def encode(prompt):
        found = []
        for word in words.findall(prompt.lower()):
            parts = [letter[byte] for byte in word.encode()]
            parts[-1] += "</w>"
            while len(parts) > 1:
                pairs = list(pairwise(parts))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                place = pairs.index(best)
                parts[place : place + 2] = ["".join(best)]
            found += [ids[part] for part in parts]
        return found

    return encode


def test_there_are_as_many_tokens_as_rows_in_every_text_tower(tokenizer):
    assert len(tokenizer.vocabulary) == 49408
    assert sorted(tokenizer.vocabulary.values()) == list(range(49408))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_merging_by_hand(tokenizer, merged, prompt):
    tokens = tokenizer.tokens(prompt)
    expected = PUBLISHED.get(prompt, tuple(merged(prompt)))
    assert tokens.ids == (START, *expected, *[END] * (76 - len(expected)))
    assert tuple(merged(prompt)) == expected


def test_open_clips_towers_are_padded_with_the_first_token():
    tokens = ClipTokenizer(clip_vocabulary(), 77, padding="!").tokens("a cat")
    assert tokens.ids == (START, 320, 2368, END, *[0] * 73)
