"""A prompt as the text encoder sees it, and where each token stands in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NOT_IN_A_WORD = r"(?!(?<=\w)\w)"  # not between two letters, so that "cat" is not in "cats"


@dataclass(frozen=True)
class Tokens:
    """L token ids with the span of characters each came from; None for start, end and padding."""

    prompt: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int] | None, ...]
    length: int  # tokens that are not padding, start and end included
    chunks: int = 1  # of equal length, each with a start, an end and padding of its own
    weights: tuple[float, ...] = ()  # of each token's hidden state; all 1 if none

    def words(self) -> list[Word]:
        """The words in order: runs without white space, less the punctuation at their ends."""
        found = []
        for match in re.finditer(r"\w(?:\S*\w)?", self.prompt):
            found.append(Word(match.group(), self._over(*match.span())))
        return found

    def find(self, phrase: str) -> tuple[int, ...]:
        """Indices of the tokens of a word or phrase, wherever it occurs; letter case is ignored.

        `cat#2` is the second occurrence alone. Raises ValueError if the phrase is not in the
        prompt.
        """
        name, _, number = phrase.partition("#")
        pattern = _NOT_IN_A_WORD + r"\s+".join(map(re.escape, name.split())) + _NOT_IN_A_WORD
        matches = list(re.finditer(pattern, self.prompt, re.IGNORECASE)) if name.split() else []
        if number:
            matches = matches[int(number) - 1 : int(number)] if number.isdecimal() else []
        if not matches:
            words = ", ".join(repr(word.text) for word in self.words()) or "no words"
            raise ValueError(f"{phrase!r} is not in the prompt {self.prompt!r}; it has {words}")
        return tuple(sorted({token for match in matches for token in self._over(*match.span())}))

    def _over(self, start: int, end: int) -> tuple[int, ...]:
        return tuple(
            index
            for index, span in enumerate(self.spans)
            if span is not None and span[0] < end and span[1] > start
        )


@dataclass(frozen=True)
class Word:
    """A word and the indices of its tokens."""

    text: str
    tokens: tuple[int, ...]
