"""Prompts to tokens: CLIP's byte-pair encoding, and a stand-in where there is no vocabulary."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pivotal.errors import ModelError
from pivotal.model.vocabulary import Vocabulary
from pivotal.tokens import Tokens

Span = tuple[int, int]

_LARGEST = 10**6  # transformers says 1e30 where a tokenizer's config names no limit
_PIECE = 6  # characters a token of the stand-in
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)


class Tokenizer(Protocol):
    """Turns a prompt into tokens. Nothing is ever truncated."""

    chunks: int  # of max_length that a prompt is spread over; 1 is what models are trained on

    @property
    def max_length(self) -> int:
        """What a prompt, or a chunk of one, is padded to."""
        ...

    def tokens(self, prompt: str) -> Tokens:
        """Raises ValueError for a prompt that has no room with its start and end."""
        ...


class ClipTokenizer:
    """CLIP's byte-level BPE, with the vocabulary of a model folder or one that was read.

    limit: the text encoder's positions; the tokenizer's own limit counts too.
    padding: the token that prompts are padded with, where it is not the tokenizer's own.
    """

    def __init__(
        self, source: Path | Vocabulary, limit: int, *, padding: str | None = None
    ) -> None:
        """Raises ModelError for a folder that holds no CLIP vocabulary."""
        self._tokenizer = _of_folder(source) if isinstance(source, Path) else _of(source)
        if padding is not None:
            self._tokenizer.pad_token = padding
        own = int(self._tokenizer.model_max_length)
        self.max_length = min(limit, own) if own < _LARGEST else limit
        self.chunks = 1
        self._taught: dict[int, tuple[int, ...]] = {}

    @property
    def end(self) -> int:
        """The id that ends a prompt."""
        return int(self._tokenizer.eos_token_id)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token."""
        known: dict[str, int] = self._tokenizer.get_vocab()
        return known

    def teach(self, token: str, ids: Sequence[int]) -> None:
        """From now on a word of its own, which stands for these ids, all at its place.

        Letter case is ignored, as CLIP does. Raises ValueError for a word that is known already.
        """
        from tokenizers import AddedToken

        word = AddedToken(token, single_word=True, normalized=True)
        if token in self.vocabulary or not self._tokenizer.add_tokens([word]):
            raise ValueError(f"the token {token!r} is in the vocabulary already; name another")
        self._taught[int(self._tokenizer.convert_tokens_to_ids(token))] = tuple(ids)

    def tokens(self, prompt: str) -> Tokens:
        encoded = self._tokenizer(
            prompt, return_offsets_mapping=True, padding=False, truncation=False, verbose=False
        )
        found = [int(token) for token in encoded["input_ids"]]
        places = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        ids: list[int] = []
        spans: list[Span | None] = []
        for token, span in zip(found, [None, *places[1:-1], None], strict=True):
            stands_for = self._taught.get(token, (token,))
            ids += stands_for
            spans += [span] * len(stands_for)
        padding = int(self._tokenizer.pad_token_id)
        return _padded(prompt, ids, spans, padding, self.max_length, self.chunks)


def _of_folder(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    whole = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not whole and not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no vocab.json with merges.txt, and no tokenizer.json")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"the tokenizer in {folder} can't be read: {error}") from error


def _of(vocabulary: Vocabulary) -> Any:
    from transformers import CLIPTokenizer

    merges = [tuple(merge.split()) for merge in vocabulary.merges]
    return CLIPTokenizer(vocab=vocabulary.ids, merges=merges)


class StandInTokenizer:
    """Stands in where a model with random weights has no vocabulary.

    Words are split as CLIP splits them and cut into pieces of six characters; a piece's id is a
    hash of it. The same text gives the same ids everywhere; spans are exact. It knows no language.
    """

    def __init__(self, vocabulary: int, max_length: int) -> None:
        if vocabulary < 3:
            raise ValueError(f"vocabulary={vocabulary}; start, end and one token are needed")
        self.max_length = max_length
        self.chunks = 1
        self._words = vocabulary - 2
        self._start, self._end = vocabulary - 2, vocabulary - 1

    def tokens(self, prompt: str) -> Tokens:
        spans: list[Span | None] = []
        for word in _WORDS.finditer(prompt):
            start, end = word.span()
            spans += [(at, min(at + _PIECE, end)) for at in range(start, end, _PIECE)]
        ids = [self._hash(prompt[slice(*span)]) for span in spans if span is not None]
        ids = [self._start, *ids, self._end]
        spans = [None, *spans, None]
        return _padded(prompt, ids, spans, self._end, self.max_length, self.chunks)

    def _hash(self, piece: str) -> int:
        return zlib.crc32(piece.lower().encode()) % self._words


def _padded(
    prompt: str,
    ids: Sequence[int],
    spans: Sequence[Span | None],
    padding: int,
    length: int,
    chunks: int,
) -> Tokens:
    """Raises ValueError where the prompt has no room; what would be lost is named."""
    places = range(1, len(ids) - 1)
    parts = _by_words(spans, places, length - 2)
    if len(parts) > chunks:
        first = length - 1 if chunks == 1 else parts[chunks][0]
        dropped = next(span for span in spans[first:] if span is not None)
        word = dropped[0]
        while word and not prompt[word - 1].isspace():  # the whole word, not from its middle
            word -= 1
        lost = " ".join(prompt[word:].split()[:3])
        many = "" if chunks == 1 else f" in each of {chunks} chunks"
        raise ValueError(
            f"the prompt has {len(ids)} tokens with its start and end, and the text encoder takes "
            f"{length}{many}: {lost[:60]!r} and what follows would be lost; shorten it, or load "
            f"the model with long_prompts={len(parts)} chunks"
        )
    all_ids: list[int] = []
    all_spans: list[Span | None] = []
    used = 0
    for part in [*parts, *[range(0)] * (chunks - len(parts))]:
        missing = length - 2 - len(part)
        if part or not all_ids:
            used = len(all_ids) + len(part) + 2
        all_ids += [ids[0], *(ids[i] for i in part), ids[-1], *[padding] * missing]
        all_spans += [None, *(spans[i] for i in part), None, *[None] * missing]
    return Tokens(prompt, tuple(all_ids), tuple(all_spans), used, chunks)


def _by_words(
    spans: Sequence[Span | None], places: Sequence[int], room: int
) -> list[Sequence[int]]:
    """Token places in chunks of at most `room`. A word goes whole into the next chunk where it does
    not fit, unless it is longer than a chunk.
    """
    words: list[list[int]] = []
    end = -1  # of the last token, in the text
    for place in places:
        span = spans[place]
        joined = bool(words) and span is not None and span[0] <= end  # no space between
        if joined:
            words[-1].append(place)
        else:
            words.append([place])
        end = end if span is None else span[1]
    chunks: list[list[int]] = [[]]
    for word in words:
        if chunks[-1] and len(word) <= room < len(chunks[-1]) + len(word):
            chunks.append([])
        for place in word:
            if len(chunks[-1]) == room:
                chunks.append([])
            chunks[-1].append(place)
    return list(chunks)
