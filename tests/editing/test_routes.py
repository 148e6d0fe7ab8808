from dataclasses import replace

import pytest
import torch

from pivotal.editing.edit import Edit
from pivotal.editing.routes import (
    WORD_COLUMNS,
    Layers,
    injected,
    plan_target,
    routes_at,
    word_columns,
)

STEPS, LENGTH = 10, 16
LAYERS = Layers(self_downscales=(1, 2, 4, 2, 1), cross_downscales=(1, 2, 2))
CAT, DOG = "a red cat on the mat", "a red dog on the mat"


@pytest.fixture
def routes(tokenize):
    def make(source, edits, step, layers=LAYERS):
        plans = [plan_target(tokenize(source), tokenize(e.target), e, STEPS) for e in edits]
        return routes_at(step, plans, word_columns(plans), layers)

    return make


def test_the_sources_row_carries_the_identity(routes):
    edits = [Edit(DOG), Edit(CAT, weights={"cat": 3}), Edit("a cat", kind="refine")]
    for step in range(STEPS):
        made = routes(CAT, edits, step)
        assert made.rows == 4
        assert made.donors[0] == 0
        for name in ("self_queries", "self_keys", "self_values"):
            assert (getattr(made, name)[:, 0] == 0).all()
        assert not made.cross_gate[:, 0].any()
        assert not made.mix[0].any()
        assert (made.keep[0] == 1).all()


def test_all_targets_borrow_from_the_source_and_are_tied_to_it(routes):
    made = routes(CAT, [Edit(DOG), Edit(CAT)], 0)
    assert made.donors.tolist() == [0, 0, 0]
    assert made.ties() == [[0, 1, 2]]


def test_tensors_have_one_shape_at_every_step_and_are_never_one_object(routes):
    """An edit is data: nothing is recompiled for it, and no input of an export is merged."""
    edits = [Edit(DOG, cross_replace_steps={"dog": (0.3, 0.5)}, self_replace_steps=(0.2, 0.6))]
    shapes = set()
    for step in range(STEPS):
        made = vars(routes(CAT, edits, step))
        shapes.add(tuple((name, tensor.shape, tensor.dtype) for name, tensor in made.items()))
        assert len({tensor.data_ptr() for tensor in made.values()}) == len(made)
    assert len(shapes) == 1


def test_self_attention_is_injected_in_layers_of_at_most_half_the_side(routes):
    assert injected(LAYERS) == [1, 2, 3]
    assert injected(replace(LAYERS, injected_from=1)) == [0, 1, 2, 3, 4]
    edit = Edit(DOG, self_replace_steps=(0.2, 0.4))
    for step in range(STEPS):
        made = routes(CAT, [edit], step)
        expected = [1, 0, 0, 0, 1] if step in (2, 3) else [1] * 5
        assert made.self_queries[:, 1].tolist() == expected
        assert made.self_keys[:, 1].tolist() == expected
        assert made.self_values[:, 1].tolist() == [1] * 5


def test_a_swap_borrows_inside_the_window_and_keeps_outside(routes):
    edit = Edit(DOG, cross_replace_steps={"default": (0.2, 0.8), "dog": 0.1, "mat": (0.5, 0.6)})
    columns = {3: range(1), 6: range(5, 6)}  # dog, mat
    for step in range(STEPS):
        made = routes(CAT, [edit], step)
        inside = [step in columns.get(n, range(2, 8)) for n in range(LENGTH)]
        alpha = torch.tensor(inside).float()
        assert torch.equal(made.mix[1], torch.diag(alpha))
        assert torch.equal(made.keep[1], 1 - alpha)
        assert (made.cross_gate[:, 1] == float(any(inside))).all()


@pytest.mark.parametrize(
    ("target", "kind"), [(CAT, "reweight"), (DOG, "swap"), ("a red cat on the old mat", "refine")]
)
def test_weights_scale_what_is_borrowed_and_what_is_kept_inside_the_window(routes, target, kind):
    weighted = Edit(target, kind=kind, weights={"red": -2, target.split()[-1]: 3})
    plain = Edit(target, kind=kind)
    factors = torch.ones(LENGTH)
    factors[2] = -2
    factors[len(target.split())] = 3
    for step in range(STEPS):
        one, other = routes(CAT, [weighted], step), routes(CAT, [plain], step)
        factor = factors if step < 8 else torch.ones(LENGTH)
        assert torch.equal(one.mix[1], other.mix[1] * factor)
        assert torch.equal(one.keep[1], other.keep[1] * factor)


def test_new_words_of_a_refinement_keep_their_own_attention(routes):
    made = routes(CAT, [Edit("a red cat on the old mat")], 0)
    assert made.keep[1].tolist() == [0] * 6 + [1] + [0] * 9
    assert not made.mix[1][:, 6].any()
    assert made.mix[1][6, 7] == made.mix[1][7, 8] == 1  # mat, end


def test_word_columns_hold_blend_then_subtract_then_heat_maps(tokenize):
    edits = [
        Edit(DOG, blend=("cat", "dog"), subtract=("mat",)),
        Edit(CAT, weights={"red": 2, "cat": 2, "on the": 2}, blend=("on",)),
    ]
    plans = [plan_target(tokenize(CAT), tokenize(e.target), e, STEPS) for e in edits]
    columns = word_columns(plans)
    assert columns.shape == (3, LENGTH, WORD_COLUMNS)
    assert not columns[:, :, 5:].any()
    named = [[columns[r, :, k].nonzero().flatten().tolist() for k in range(5)] for r in range(3)]
    assert named == [
        [[3], [6], [4], [], []],  # the source's, for each target
        [[3], [6], [3], [], []],  # dog is where cat was; its heat-map
        [[4], [], [2], [3], [4, 5]],
    ]


def test_no_edit_changes_the_shape_of_its_routes(tokenize):
    few = plan_target(tokenize(CAT), tokenize(DOG), Edit(DOG), STEPS)
    many = plan_target(tokenize(CAT), tokenize(CAT), Edit(CAT, weights={"cat": 2}), STEPS)
    assert word_columns([few]).shape == word_columns([many]).shape


def test_targets_over_the_capacity_are_refused(tokenize):
    plans = [plan_target(tokenize(CAT), tokenize(DOG), Edit(DOG), STEPS)] * 9
    with pytest.raises(ValueError, match="9 targets at once; at most 8"):
        word_columns(plans)


def test_automatic_blend_words_are_those_that_differ_and_not_their_namesakes(tokenize):
    source, target = tokenize("a cat and a cat"), tokenize("a cat and a dog")
    plan = plan_target(source, target, Edit(target.prompt, blend="auto"), STEPS)
    assert plan.blend_columns[0, 0].nonzero().flatten().tolist() == [5]
    assert plan.blend_columns[0, 1].nonzero().flatten().tolist() == [5]
    swapped = plan_target(target, source, Edit(source.prompt, blend="auto"), STEPS)
    assert swapped.blend_columns[0, 1].nonzero().flatten().tolist() == [5]


def test_a_word_that_stands_twice_has_two_heat_maps_and_one_named_twice_has_one(tokenize):
    source, target = tokenize("a cat and a cat"), tokenize("a dog and a dog")
    plan = plan_target(source, target, Edit(target.prompt, kind="swap"), STEPS)
    assert [(word.text, word.tokens) for word in plan.heat_words] == [
        ("dog", (2,)),
        ("dog#2", (5,)),
    ]
    weighted = Edit(DOG, weights={"dog": 2})
    plan = plan_target(tokenize(CAT), tokenize(DOG), weighted, STEPS)
    assert [word.text for word in plan.heat_words] == ["dog"]


@pytest.mark.parametrize(
    ("target", "kind"),
    [(CAT, "reweight"), (DOG, "swap"), ("a cat on a mat", "refine"), ("the dog", "refine")],
)
def test_the_kind_is_chosen_where_none_is_named(tokenize, target, kind):
    plan = plan_target(tokenize(CAT), tokenize(target), Edit(target), STEPS)
    assert plan.alignment.kind == kind
