import pytest

from pivotal.inversion import ddim, null_text
from pivotal.inversion.registry import METHODS, method_named
from pivotal.query import Denoise, NoiseGradient


def test_methods_are_found_by_their_name():
    assert set(METHODS) >= {"ddim", "null-text"}
    for name, method in METHODS.items():
        assert method_named(name) is method
        assert method.name == name
        assert method.paper.startswith(("arXiv:", "github.com/"))
        method.options()  # defaults are valid
    assert method_named("ddim").needs == {Denoise}
    assert method_named("null-text").needs == {Denoise, NoiseGradient}


@pytest.mark.parametrize(
    ("name", "option"),
    [("finite-difference", {"gradient": "exact"}), ("newton-raphson", {"through_network": True})],
)
def test_gradients_are_needed_where_options_ask_for_them(name, option):
    method = method_named(name)
    assert method.needed(method.options()) == {Denoise}
    assert method.needed(method.options_from(option)) == {Denoise, NoiseGradient}


def test_an_unknown_method_is_refused_naming_the_accepted():
    with pytest.raises(ValueError, match=r"method='nulltext' is unknown; accepted are ddim, null"):
        method_named("nulltext")


def test_options_are_read_from_text_and_numbers():
    read = method_named("null-text").options_from(
        {"inner_steps": "3", "learning_rate": "1e-3", "guidance_scale": 5}
    )
    assert read == null_text.NullTextOptions(inner_steps=3, learning_rate=1e-3, guidance_scale=5.0)
    assert isinstance(read.guidance_scale, float)
    assert method_named("ddim").options_from({"asked_at": "source"}).asked_at == "source"
    assert method_named("ddim").options_from({}) == ddim.DDIMOptions()


def test_an_unknown_option_is_refused_naming_the_accepted():
    with pytest.raises(ValueError, match=r"ddim has no option 'steps'; accepted are guidance_sc"):
        method_named("ddim").options_from({"steps": 3})


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("inner_steps", "many", "int"),
        ("inner_steps", 2.5, "int"),
        ("inner_steps", "2.5", "int"),
        ("inner_steps", True, "int"),
        ("learning_rate", None, "float"),
        ("learning_rate", False, "float"),
        ("guidance_scale", [7.5], "float"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_saying_what_is_expected(option, value, kind):
    with pytest.raises(ValueError, match=rf"option {option}=.* is not {kind}"):
        method_named("null-text").options_from({option: value})


def test_a_wrong_word_is_refused_by_the_options_themselves():
    with pytest.raises(ValueError, match="asked_at='now' is unknown; accepted are destination"):
        method_named("ddim").options_from({"asked_at": "now"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="guidance_scale"):
        method_named("null-text").options_from({"guidance_scale": value})


def test_truths_and_counts_that_may_be_none_are_read_from_text():
    read = method_named("k-euler").options_from({"heun": "yes", "invert_steps": "40"})
    assert (read.heun, read.invert_steps) == (True, 40)
    read = method_named("k-euler").options_from({"heun": "False", "invert_steps": "none"})
    assert (read.heun, read.invert_steps) == (False, None)
    with pytest.raises(ValueError, match=r"heun='maybe' is not bool; accepted are true, false"):
        method_named("k-euler").options_from({"heun": "maybe"})
    with pytest.raises(ValueError, match=r"invert_steps='x' is not int"):
        method_named("k-euler").options_from({"invert_steps": "x"})
