import pytest
import torch

from pivotal.editing.edit import Edit, bounds, step_range


def test_defaults_are_the_papers():
    edit = Edit("a cat")
    assert (edit.kind, edit.cross_replace_steps, edit.self_replace_steps) == ("auto", 0.8, 0.4)
    assert (edit.blend, edit.blend_threshold, edit.blend_start) == ((), 0.3, 0.2)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 999])
@pytest.mark.parametrize("tenths", range(11))
def test_a_window_counts_whole_steps_in_spite_of_rounding(steps, tenths):
    assert step_range(tenths / 10, steps) == range(tenths * steps // 10)
    assert step_range((tenths / 10, 1.0), steps) == range(tenths * steps // 10, steps)


OUTSIDE = [-0.1, 1.1, (0.5, 0.4), (-0.1, 0.5), (0.5, 1.5), float("nan")]
NO_WINDOWS = ["0.4", None, [0, 0.4], (0.1, 0.2, 0.3), ("0", "1"), True]


@pytest.mark.parametrize("window", [*OUTSIDE, *NO_WINDOWS])
def test_a_window_outside_the_steps_is_refused(window):
    with pytest.raises(ValueError, match="0 <= from <= to <= 1"):
        bounds(window)
    with pytest.raises(ValueError, match="window"):
        Edit("a cat", cross_replace_steps=window)
    with pytest.raises(ValueError, match="window"):
        Edit("a cat", cross_replace_steps={"cat": window})
    with pytest.raises(ValueError, match="window"):
        Edit("a cat", self_replace_steps=window)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "replace"}, "kind='replace' is unknown; accepted are auto, swap, refine"),
        ({"blend": "cat"}, "give a tuple of words or 'auto'"),
        ({"subtract": ("cat",)}, "name words to blend as well"),
        ({"blend": ("cat",), "blend_threshold": 1.5}, "blend_threshold=1.5; a fraction"),
        ({"blend": ("cat",), "subtract_threshold": -1}, "subtract_threshold=-1; a fraction"),
        ({"blend": ("cat",), "blend_start": 2}, "blend_start=2; a fraction"),
        ({"mask": torch.ones(1, 8, 8, dtype=torch.bool)}, r"mask has shape \[1, 8, 8\]"),
        ({"mask": torch.ones(8, 8)}, "torch.float32; .* torch.bool are expected"),
        ({"mask": torch.ones(8, 8).bool().numpy()}, "mask is of type ndarray; a tensor"),
        ({"blend_threshold": 0.5}, "blend_threshold=0.5 does nothing without words to blend"),
        ({"blend": ("cat",), "subtract_threshold": 0.5}, "without words to subtract; name"),
        ({"mask_words": ("cat",), "blend_start": 0.5}, "blend_start=0.5 does nothing"),
        ({"blend": None}, "blend=None; give a tuple of words or 'auto'"),
        ({"blend": ("cat",), "subtract": "mat"}, "subtract='mat'; give a tuple of words$"),
        ({"mask_words": ("cat", 3)}, r"mask_words=\('cat', 3\); give a tuple"),
        ({"weights": None}, "weights=None; a mapping of words"),
        ({"weights": {"cat": "2"}}, "weight cat=2; a finite factor"),
        ({"blend": ("cat",), "blend_threshold": "0.3"}, "blend_threshold='0.3'; a fraction"),
        ({"blend": ("cat",), "feather": "3"}, "feather='3'; pixels from 0"),
        ({"mutual": 4}, "mutual=4; MutualSelfAttention or None"),
        ({"target": 3}, "target=3; a prompt is expected"),
    ],
)
def test_a_wrong_wish_is_refused_with_what_is_accepted(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Edit(**{"target": "a cat", **options})


def test_lists_of_words_are_taken_too():
    edit = Edit("a cat", blend=["cat", "dog"], subtract=["mat"], mask_words=["cat"])
    assert edit == Edit("a cat", blend=("cat", "dog"), subtract=("mat",), mask_words=("cat",))


def test_all_of_a_wish_can_be_said_at_once():
    Edit(
        "a cat",
        kind="refine",
        cross_replace_steps={"default": (0.1, 0.9), "cat": 0.3},
        self_replace_steps=(0.0, 1.0),
        weights={"cat": -2.0},
        blend=("cat", "dog"),
        subtract=("mat",),
        mask=torch.ones(4, 4, dtype=torch.bool),
    )


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_weight_that_is_no_finite_number_is_named(factor):
    with pytest.raises(ValueError, match=r"weight red=.*a finite factor is expected"):
        Edit("a red cat", weights={"red": factor})
