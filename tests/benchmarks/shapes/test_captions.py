"""Captions are true, canonical forms exist, and every word of theirs is in the vocabulary."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from pivotal.bench.shapes.captions import PLAIN, SHAPE_WORDS, SIZE_WORDS, canonical_caption, caption
from pivotal.bench.shapes.palette import BACKGROUNDS, COLOURS
from pivotal.bench.shapes.scenes import Scene, sample_scene
from shapes.tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")), scenes=3000)


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def test_canonical_captions_are_the_plainest_wording() -> None:
    rng = np.random.default_rng(0)
    for scene in _scenes(100):
        assert caption(scene, rng, PLAIN) == canonical_caption(scene)
    alone = next(scene for scene in _scenes(100) if len(scene.objects) == 1)
    thing = alone.objects[0]
    words = f"{thing.size} {thing.colour} {thing.shape} on a {alone.background.colour} background"
    assert canonical_caption(alone, size=True) == f"a {words}"


def test_captions_say_nothing_untrue() -> None:
    rng = np.random.default_rng(1)
    for scene in _scenes(500, seed=1):
        words = set(caption(scene, rng).replace("plus sign", "plus").split())
        shapes = {thing.shape for thing in scene.objects}
        colours = {thing.colour for thing in scene.objects}
        sizes = {thing.size for thing in scene.objects}
        assert words & set(COLOURS) <= colours
        assert words & set(BACKGROUNDS) <= {scene.background.colour}
        for shape, names in SHAPE_WORDS.items():
            assert shape in shapes or not words & set(names)
        for size, names in SIZE_WORDS.items():
            assert size in sizes or not words & set(names)


def test_a_vowel_takes_an() -> None:
    rng = np.random.default_rng(2)
    for scene in _scenes(500, seed=2):
        words = caption(scene, rng).split()
        for article, word in itertools.pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), words


def test_caption_words_encode_and_come_back(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(3)
    for scene in _scenes(200, seed=3):
        text = caption(scene, rng)
        tokens = tokenizer(text).input_ids
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens[-1] == tokenizer.eos_token_id
        assert len(tokens) <= 32
        decoded = tokenizer.decode(tokens, skip_special_tokens=True)
        assert decoded.replace(" - ", "-").strip() == text


def test_any_ascii_text_encodes_without_unknowns(tokenizer: CLIPTokenizer) -> None:
    text = "".join(chr(code) for code in range(33, 127))
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens).replace(" ", "") == text.lower()


def test_some_words_take_several_tokens_and_most_take_one(tokenizer: CLIPTokenizer) -> None:
    def length(word: str) -> int:
        return len(tokenizer(word, add_special_tokens=False).input_ids)

    assert length("red") == length("square") == length("on") == 1
    assert length("triangle") == length("turquoise") == length("background") == 2


def test_a_padded_prompt_is_77_tokens(tokenizer: CLIPTokenizer) -> None:
    tokens = tokenizer("a red circle", padding="max_length").input_ids
    assert len(tokens) == tokenizer.model_max_length == 77
    assert tokens[-1] == tokenizer.pad_token_id == tokenizer.eos_token_id
