"""Words to tokens: which source token a target token borrows its attention from.

Hertz et al. 2022, "Prompt-to-Prompt" (arXiv:2208.01626), section 3.2. Both alignments are [L, L]
matrices: source tokens are rows, target tokens are columns, float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pivotal.tokens import Tokens, Word

Kind = Literal["swap", "refine", "reweight"]
KINDS: tuple[Kind, ...] = ("swap", "refine", "reweight")


@dataclass(frozen=True)
class Alignment:
    """mapper: [L, L]. shared: [L], 1 where a target token has a counterpart in the source.

    changed: the words of source and target that differ, for masks and heat-maps.
    """

    kind: Kind
    mapper: Tensor
    shared: Tensor
    changed: tuple[tuple[Word, ...], tuple[Word, ...]]


def choose(source: Tokens, target: Tokens) -> Kind:
    """The edit that fits two prompts: equal tokens are re-weighted, words are swapped where the
    prompts have as many words and at least half of them stay (or they are one word), and everything
    else is a refinement.
    """
    if source.ids == target.ids:
        return "reweight"
    ours, theirs = _texts(source), _texts(target)
    kept = sum(a == b for a, b in zip(ours, theirs, strict=False))
    alike = 2 * kept >= len(ours) or len(ours) == 1
    return "swap" if len(ours) == len(theirs) and alike else "refine"


def align(source: Tokens, target: Tokens, kind: Kind) -> Alignment:
    """Raises ValueError where the prompts do not allow the kind."""
    if kind == "swap":
        return _swap(source, target)
    if kind == "refine":
        return _refine(source, target)
    if source.ids != target.ids:
        raise ValueError(
            f"re-weighting alone keeps the prompt; {target.prompt!r} differs from {source.prompt!r}"
        )
    length = len(source.ids)
    return Alignment("reweight", torch.eye(length), torch.ones(length), ((), ()))


def _swap(source: Tokens, target: Tokens) -> Alignment:
    """Each word takes the attention of the word in its place.

    Words of unequal token counts split or merge it evenly: source token to target token 1/count.
    Between words (punctuation) and after the last (end, padding) tokens are paired one to one; a
    target token left over has no counterpart and keeps its own attention. (The authors' code pairs
    by position after the last swapped word, which misaligns the rest where token counts differ.)
    """
    pairs = list(zip(source.words(), target.words(), strict=False))
    if len(source.words()) != len(target.words()):
        raise ValueError(
            f"a swap needs as many words in both prompts; {source.prompt!r} has "
            f"{len(source.words())}, {target.prompt!r} has {len(target.words())}; use kind 'refine'"
        )
    length = len(source.ids)
    mapper, shared = torch.zeros(length, length), torch.zeros(length)
    if source.chunks > 1:
        for place in _in_place(source, target):
            mapper[place, place] = shared[place] = 1
    row = column = 0  # the first tokens not yet paired
    for before, after in [*((a.tokens, b.tokens) for a, b in pairs), ((length,), (length,))]:
        between = min(before[0] - row, after[0] - column) if source.chunks == 1 else 0
        for step in range(between):
            mapper[row + step, column + step] = shared[column + step] = 1
        if before[0] == length:
            break
        if len(before) == len(after):
            mapper[list(before), list(after)] = 1
        else:
            for token in before:  # no slice: between a long word's tokens a chunk may end
                mapper[token, list(after)] = 1 / len(after)
        shared[list(after)] = 1
        row, column = before[-1] + 1, after[-1] + 1
    differing = [(a, b) for a, b in pairs if a.text.lower() != b.text.lower()]
    changed = (tuple(a for a, _ in differing), tuple(b for _, b in differing))
    return Alignment("swap", mapper, shared, changed)


def _refine(source: Tokens, target: Tokens) -> Alignment:
    """Tokens that both prompts have keep the source's attention; new ones have their own.

    The alignment is the best global one (Needleman & Wunsch 1970; gap 0, match 1, mismatch -1).
    Padding follows padding; in chunks it stays in its place, with their starts and ends.
    """
    if source.chunks > 1:
        return _refine_chunks(source, target)
    ours, theirs = source.ids[: source.length], target.ids[: target.length]
    length = len(source.ids)
    mapper, shared = torch.zeros(length, length), torch.zeros(length)
    pairs = _global_alignment(ours, theirs)
    for padding in range(length - len(theirs)):
        pairs.append((min(len(ours) + padding, length - 1), len(theirs) + padding))
    for row, column in pairs:
        mapper[row, column] = shared[column] = 1
    kept_rows = {row for row, _ in pairs}
    gone = tuple(word for word in source.words() if not kept_rows.issuperset(word.tokens))
    new = tuple(word for word in target.words() if not all(shared[list(word.tokens)]))
    return Alignment("refine", mapper, shared, (gone, new))


def _refine_chunks(source: Tokens, target: Tokens) -> Alignment:
    ours, theirs = (
        [place for place, span in enumerate(tokens.spans) if span is not None]
        for tokens in (source, target)
    )
    length = len(source.ids)
    mapper, shared = torch.zeros(length, length), torch.zeros(length)
    equal = _global_alignment(
        tuple(source.ids[place] for place in ours), tuple(target.ids[place] for place in theirs)
    )
    pairs = [(ours[row], theirs[column]) for row, column in equal]
    pairs += [(place, place) for place in _in_place(source, target)]
    for row, column in pairs:
        mapper[row, column] = shared[column] = 1
    kept = {row for row, _ in pairs}
    gone = tuple(word for word in source.words() if not kept.issuperset(word.tokens))
    new = tuple(word for word in target.words() if not all(shared[list(word.tokens)]))
    return Alignment("refine", mapper, shared, (gone, new))


def _in_place(source: Tokens, target: Tokens) -> list[int]:
    """Where both prompts have a start, an end or padding. What only one has keeps to itself."""
    pairs = enumerate(zip(source.spans, target.spans, strict=True))
    return [place for place, spans in pairs if spans == (None, None)]


def _global_alignment(ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs (source index, target index) of equal tokens in the best global alignment.

    A mismatch costs more than two gaps, so that only equal tokens are ever paired. Of a repeated
    token the first is, as in the authors' code: what is appended to a prompt is new.
    """
    rows, columns = len(ours), len(theirs)
    score = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            diagonal = score[i - 1][j - 1] + (1 if ours[i - 1] == theirs[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    pairs = []
    i, j = rows, columns
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _texts(tokens: Tokens) -> list[str]:
    return [word.text.lower() for word in tokens.words()]
