import pytest
import torch

from baselines.alignment import refinement_alignment, replacement_mapper

START, END = 90, 99


def ids(*words):
    return [START, *words, END]


def pairs(mapper):
    return {(m, n): mapper[m, n].item() for m, n in mapper.nonzero().tolist()}


@pytest.mark.parametrize("tail", ["notebook", "shifted"])
def test_equal_counts_swap_one_to_one(tail):
    mapper = replacement_mapper(ids(1, 2, 3), ids(1, 7, 3), [((2, 3), (2, 3))], 8, tail)
    assert torch.equal(mapper, torch.eye(8, dtype=torch.float64))


def test_a_split_word_shares_its_attention_evenly():
    mapper = replacement_mapper(ids(1, 2, 3), ids(1, 7, 8, 3), [((2, 3), (2, 4))], 8, "shifted")
    assert pairs(mapper) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 0.5, (2, 3): 0.5, (3, 4): 1, (4, 5): 1, (5, 6): 1, (6, 7): 1,
    }  # fmt: skip


def test_a_merged_word_adds_its_attention_up():
    mapper = replacement_mapper(ids(1, 7, 8, 3), ids(1, 2, 3), [((2, 4), (2, 3))], 8, "shifted")
    assert pairs(mapper) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (4, 3): 1, (5, 4): 1, (6, 5): 1, (7, 6): 1,
    }  # fmt: skip


def test_two_tokens_to_three_keep_their_total():
    swaps = [((1, 3), (1, 4)), ((4, 5), (5, 6))]
    mapper = replacement_mapper(ids(1, 2, 3, 4), ids(5, 6, 7, 3, 8), swaps, 9, "shifted")
    torch.testing.assert_close(mapper[1:3, 1:4], torch.full((2, 3), 1 / 3).double())
    assert mapper[3, 4] == mapper[4, 5] == mapper[5, 6] == 1
    assert (mapper[:8].sum(1) == 1).all()
    assert mapper[8].sum() == 0


def test_the_notebooks_tail_forgets_the_shift_after_the_last_swap():
    swaps = [((2, 3), (2, 4))]
    split = replacement_mapper(ids(1, 2, 3), ids(1, 7, 8, 3), swaps, 8, "notebook")
    assert pairs(split) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 0.5, (2, 3): 0.5, (4, 4): 1, (5, 5): 1, (6, 6): 1, (7, 7): 1,
    }  # fmt: skip
    merged = replacement_mapper(ids(1, 7, 8, 3), ids(1, 2, 3), [((2, 4), (2, 3))], 8, "notebook")
    assert pairs(merged) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (3, 3): 1, (4, 4): 1, (5, 5): 1, (6, 6): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "swaps"),
    [
        (ids(1, 2), ids(1, 3), []),
        (ids(1, 2), ids(1, 2, 3), []),
        (ids(1, 2, 3), ids(1, 7, 3), [((2, 3), (1, 2))]),
        (ids(1, 2, 3), ids(4, 2, 3), [((2, 3), (2, 3)), ((1, 2), (1, 2))]),
    ],
)
def test_what_is_no_word_swap_raises(source, target, swaps):
    with pytest.raises(ValueError, match="swap"):
        replacement_mapper(source, target, swaps, 8, "shifted")


@pytest.mark.parametrize("tail", ["notebook", "shifted"])
def test_one_prompt_aligns_with_itself(tail):
    index, alpha = refinement_alignment(ids(1, 2, 1, 3), ids(1, 2, 1, 3), 9, tail)
    assert index.tolist() == list(range(9))
    assert alpha.tolist() == [1] * 9


def test_added_words_are_new_and_ends_meet():
    source, target = ids(1, 2), ids(1, 5, 6, 2)
    index, alpha = refinement_alignment(source, target, 9, "notebook")
    assert alpha.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1]
    assert index.tolist() == [0, 1, 0, 0, 2, 3, 6, 7, 8]
    index, alpha = refinement_alignment(source, target, 9, "shifted")
    assert alpha.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1]
    assert index.tolist() == [0, 1, 0, 0, 2, 3, 4, 5, 6]


def test_dropped_words_leave_padding_to_the_tail():
    source, target = ids(1, 5, 6, 2), ids(1, 2)
    index, alpha = refinement_alignment(source, target, 9, "notebook")
    assert index.tolist() == [0, 1, 4, 5, 4, 5, 6, 7, 8]
    assert alpha.tolist() == [1] * 9
    index, alpha = refinement_alignment(source, target, 9, "shifted")
    assert index.tolist() == [0, 1, 4, 5, 6, 7, 8, 0, 0]
    assert alpha.tolist() == [1] * 7 + [0, 0]


def test_a_changed_word_is_not_paired_and_of_a_repeated_one_the_first_is():
    _, alpha = refinement_alignment(ids(1, 2, 3), ids(1, 7, 3), 5, "notebook")
    assert alpha.tolist() == [1, 1, 0, 1, 1]
    index, alpha = refinement_alignment(ids(1, 2), ids(1, 2, 2), 5, "notebook")
    assert alpha.tolist() == [1, 1, 1, 0, 1]
    assert index.tolist() == [0, 1, 2, 0, 3]
