"""Which source token each target token borrows attention from (arXiv:2208.01626, section 3).

Token ids are a prompt's own, start and end tokens included, **without padding**; position 0 is the
start token. `length` is the padded length L (77). Both builders treat start and end tokens as
ordinary tokens, so start meets start, and end meets end however the lengths differ.

Where lengths differ, the authors' notebook does something peculiar to later positions, so the
caller says which he wants. `tail="notebook"` is what it did; `tail="shifted"` keeps counting from
where the prompts stand, so that what follows meets what follows. They agree where token counts do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Span = tuple[int, int]
"""A word's token positions, half-open: `(start, stop)`."""

Tail = Literal["notebook", "shifted"]


def replacement_mapper(
    source_ids: Sequence[int],
    target_ids: Sequence[int],
    swaps: Sequence[tuple[Span, Span]],
    length: int,
    tail: Tail,
) -> Tensor:
    """Word swap: `[L, L]` float64, [source, target], for `A_t[n] = sum_m A_s[m] mapper[m, n]`.

    `swaps`: (source span, target span) of each exchanged word, left to right. Equal token counts
    pair one to one. Unequal: each of the b target tokens takes 1/b of the sum of the source tokens,
    so a word's attention is split or merged evenly and its total kept. Every other token pairs with
    the one that stands as far behind the preceding swap, and must be the same token.

    After the last swap: "shifted" goes on so to the end of the padding; positions past `length` are
    dropped (with a longer source its last columns are 0; with a longer target the source's last
    padding goes nowhere). "notebook": target position n takes source position n, from the last swap
    on, also where the words have shifted against each other; where the source is the longer by k
    the last k columns are 0.
    """
    mapper = torch.zeros(length, length, dtype=torch.float64)
    waiting = list(swaps)
    i, j = 0, 0
    while i < length and j < length:
        if waiting and waiting[0][0][0] == i:
            (i, i_stop), (j_start, j_stop) = waiting.pop(0)
            if j_start != j:
                raise ValueError(f"target span at {j_start}, expected at {j}: not a word swap")
            if i_stop - i == j_stop - j:
                for k in range(i_stop - i):
                    mapper[i + k, j + k] = 1.0
            else:
                mapper[i:i_stop, j:j_stop] = 1.0 / (j_stop - j)
            i, j = i_stop, j_stop
            continue
        if list(source_ids[i : i + 1]) != list(target_ids[j : j + 1]):  # both empty in the padding
            raise ValueError(f"token {i} of the source is not token {j} of the target, nor swapped")
        mapper[i if waiting or tail == "shifted" else j, j] = 1.0
        i, j = i + 1, j + 1
    if waiting:
        raise ValueError(
            f"swaps {waiting} were not reached: give them left to right, within length"
        )
    return mapper


def alignment_scores(source_ids: Sequence[int], target_ids: Sequence[int]) -> list[list[int]]:
    """Needleman-Wunsch: best score of each pair of prefixes; gap 0, match 1, mismatch -1."""
    score = [[0] * (len(target_ids) + 1) for _ in range(len(source_ids) + 1)]
    for i, source in enumerate(source_ids, start=1):
        for j, target in enumerate(target_ids, start=1):
            pair = score[i - 1][j - 1] + (1 if source == target else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], pair)
    return score


def refinement_alignment(
    source_ids: Sequence[int], target_ids: Sequence[int], length: int, tail: Tail
) -> tuple[Tensor, Tensor]:
    """Refinement: gather index `[L]` int64 and alpha `[L]` float64, over target positions.

    `alpha[n] = 1`: target token n takes the attention of source token `index[n]`. `alpha[n] = 0`:
    it is new and keeps its own; `index[n]` is then 0 and means nothing. Global alignment of the two
    sequences; walking back from their ends, ties prefer leaving the target's token unpaired, then
    the source's, then a pair (so of a repeated word the first is paired). With gap 0 a mismatch is
    never paired.

    Past the target's end, positions are padding. "notebook": position n takes source position n,
    alpha 1 (with a longer source the first of these meet the source's last words). "shifted": n
    takes `n - len(target) + len(source)`, padding meets padding; past `length` alpha is 0.
    """
    score = alignment_scores(source_ids, target_ids)
    index = torch.zeros(length, dtype=torch.int64)
    alpha = torch.zeros(length, dtype=torch.float64)
    i, j = len(source_ids), len(target_ids)
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            index[j], alpha[j] = i, 1.0
    shift = len(source_ids) - len(target_ids) if tail == "shifted" else 0
    for n in range(len(target_ids), length):
        if n + shift < length:
            index[n], alpha[n] = n + shift, 1.0
    return index, alpha
