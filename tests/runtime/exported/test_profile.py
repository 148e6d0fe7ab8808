import pytest

from pivotal.runtime.exported.comparison import example_shapes
from pivotal.runtime.exported.profile import ShapeProfile, Span


@pytest.mark.parametrize(("text", "span"), [("4", Span(4, 4)), ("1:18", Span(1, 18))])
def test_a_span_is_read_as_it_is_written(text, span):
    assert Span.parse(text) == span
    assert str(span) == text


@pytest.mark.parametrize("text", ["", "x", "4:", "8:4", "0:4", "-1", "1:2:3"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(ValueError, match="no span"):
        Span.parse(text)


def test_sizes_that_vary_go_in_steps_of_the_coarsest_level():
    varying = ShapeProfile(Span(1, 2), Span(512, 768), Span(520, 520))
    varying.require_multiples(8, 64)
    with pytest.raises(ValueError, match="height=512:760: multiples of 64"):
        ShapeProfile(Span(1, 2), Span(512, 760), Span(512, 512)).require_multiples(8, 64)
    with pytest.raises(ValueError, match="width=500: multiples of 8"):
        ShapeProfile(Span(1, 2), Span(512, 512), Span(500, 500)).require_multiples(8, 64)


def test_examples_lie_in_the_profile_and_trace_no_single_row():
    profile = ShapeProfile(Span(1, 18), Span(64, 256), Span(128, 128))
    shapes = example_shapes(profile)
    assert shapes[0][0] >= 2
    assert len({shape[1] for shape in shapes}) == 2
    for shape in shapes:
        profile.require(*shape, str)


def test_a_batch_outside_is_refused_with_the_profile_that_holds_it():
    profile = ShapeProfile(Span(2, 18), Span(64, 64), Span(64, 128))
    for asked, wider in [
        ((1, 64, 64), ShapeProfile(Span(1, 18), Span(64, 64), Span(64, 128))),
        ((2, 96, 64), ShapeProfile(Span(2, 18), Span(64, 96), Span(64, 128))),
        ((2, 64, 256), ShapeProfile(Span(2, 18), Span(64, 64), Span(64, 256))),
    ]:
        found = []
        with pytest.raises(ValueError, match="is outside the export's profile"):
            profile.require(*asked, lambda each: str(found.append(each)))  # noqa: B023
        assert found == [wider]


def test_a_profile_comes_back_from_its_record():
    profile = ShapeProfile(Span(1, 18), Span(64, 256), Span(128, 128))
    assert ShapeProfile.from_record(profile.record()) == profile
