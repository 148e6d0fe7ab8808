"""Options and prompts by hypothesis: bounded, and the same inputs in every run."""

import math
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pivotal
from pivotal.cli.values import parse_blend, parse_loss
from pivotal.editing.edit import Edit
from pivotal.figures import animation_extension
from pivotal.images import fit, known_extension, read_image
from pivotal.inversion.registry import METHODS, method_named
from pivotal.sampling.loss_guidance import LossGuidance
from pivotal.sampling.losses import channel_level
from pivotal.sampling.samplers import SAMPLERS, sampler_named

bounded = settings(
    max_examples=30,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a failing input is told as it is, soon
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
many = settings(bounded, max_examples=150)

TEXT = st.text(max_size=60) | st.text(string.printable, max_size=60)
WORDS = st.lists(
    st.sampled_from(
        ["a", "red", "circle", "on", "gray", "cat's", "don't", "x-ray", "#2", "(", "…", "日本",
         "🐈", "café", "cafe\u0301", "'", ",", "<|endoftext|>", "\u200b", "\n", "RED", "red."]
    ),
    max_size=12,
).map(" ".join)  # fmt: skip
PROMPTS = WORDS | TEXT
NUMBERS = (
    st.floats(0, 1)
    | st.floats(0, 1)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.integers()
    | st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e400, 10**400])
)
WRITTEN = TEXT | NUMBERS.map(str)
ANYTHING = st.one_of(
    NUMBERS, TEXT, st.none(), st.booleans(), st.lists(NUMBERS, max_size=3), st.binary(max_size=9)
)


@pytest.fixture(scope="session")
def engine():
    return pivotal.Engine.load("shapes")


@pytest.mark.parametrize("name", METHODS)
@bounded
@given(data=st.data())
def test_a_methods_options_are_typed_or_refused_by_name(name, outcomes, data):
    method = method_named(name)
    known = list(method.options.__dataclass_fields__)
    names = st.sampled_from(known) if known else st.nothing()
    given_options = data.draw(st.dictionaries(names | TEXT, ANYTHING, max_size=3))
    options, _ = outcomes("options of methods").of(
        lambda: method.options_from(given_options),
        *[repr(each) for each in given_options],
        *[str(each) for each in given_options],
        *[repr(value) for value in given_options.values()],
    )
    if options is not None:
        assert isinstance(options, method.options)
        for value in vars(options).values():
            assert not isinstance(value, float) or math.isfinite(value)


@many
@given(
    cross=NUMBERS | st.tuples(NUMBERS, NUMBERS) | st.dictionaries(PROMPTS, NUMBERS, max_size=2),
    own=NUMBERS | st.tuples(NUMBERS, NUMBERS),
    weights=st.dictionaries(PROMPTS, NUMBERS, max_size=2),
    threshold=NUMBERS,
    start=NUMBERS,
    kind=st.sampled_from(["auto", "swap", "refine", "reweight", "auto", "swap", "?", ""]),
)
def test_an_edits_fields_are_valid_or_refused_by_name(
    outcomes, cross, own, weights, threshold, start, kind
):
    wished, _ = outcomes("fields of edits").of(
        lambda: Edit(
            "a cat", kind=kind, cross_replace_steps=cross, self_replace_steps=own,
            weights=weights, blend_threshold=threshold, blend_start=start,
        ),
        "kind=", "window", "weight", "blend",
    )  # fmt: skip
    if wished is not None:
        assert 0 <= wished.blend_threshold <= 1
        assert all(math.isfinite(factor) for factor in wished.weights.values())


@many
@given(source=PROMPTS, target=PROMPTS, word=PROMPTS, steps=st.integers(-2, 60), option=st.data())
def test_any_two_prompts_are_explained_or_refused(engine, outcomes, source, target, word, steps,
                                                  option):  # fmt: skip
    options = option.draw(
        st.sampled_from(
            [{}, {"blend": (word,)}, {"blend": "auto"}, {"weights": {word: 2.0}},
             {"cross_replace_steps": {word: 0.5, "default": 0.2}}, {"kind": "swap"},
             {"kind": "refine"}, {"blend": (word,), "subtract": (word,)}]
        )
    )  # fmt: skip
    explained, sentence = outcomes("prompts").of(
        lambda: engine.explain(source, target, num_inference_steps=steps, **options), ""
    )
    if explained is not None:
        assert explained.record()
    else:
        assert any(
            value in sentence
            for value in (
                repr(word),
                word,
                repr(source),
                repr(target),
                str(steps),
                "prompt",
                "step",
            )
        ), sentence


@bounded
@given(size=st.tuples(st.integers(-3, 400), st.integers(-3, 400)), policy=TEXT | st.just("pad"),
       shape=st.tuples(st.integers(1, 90), st.integers(1, 90)))  # fmt: skip
def test_any_size_is_fitted_and_undone_or_refused(outcomes, size, policy, shape):
    picture = read_image(np.zeros((*shape, 3), np.uint8))
    fitted, _ = outcomes("sizes and policies").of(
        lambda: fit(picture, size, policy), repr(policy), str(size)
    )
    if fitted is not None:
        assert fitted.size == size
        assert fitted.unfit(fitted.pixels).shape[:2] == shape


@bounded
@given(name=TEXT)
def test_an_outputs_extension_is_known_or_refused(outcomes, name):
    from pathlib import Path

    for call in (lambda: known_extension(Path(name)), lambda: animation_extension(name)):
        outcomes("names of outputs").of(call, repr(str(Path(name)))[:60], repr(name)[:60])


@many
@given(
    name=st.sampled_from(list(SAMPLERS)) | TEXT,
    options=st.dictionaries(st.sampled_from(["eta", "order"]) | TEXT, NUMBERS, max_size=2),
)
def test_a_samplers_options_are_valid_or_refused_by_name(outcomes, name, options):
    chosen, _ = outcomes("samplers").of(
        lambda: sampler_named(name).options_from(options),
        repr(name),
        *map(repr, options),
        *(f"{each}=" for each in options),
    )
    if chosen is not None:
        assert 0 <= chosen.get("eta", 0) <= 1
        assert chosen.get("order", 1) >= 1


@many
@given(
    loss=TEXT | st.tuples(st.sampled_from(["blue", "image", "Blue"]), WRITTEN).map(":".join),
    blend=TEXT | st.tuples(PROMPTS, WRITTEN).map("=".join),
)
def test_losses_and_blends_are_read_or_refused_by_name(outcomes, loss, blend):
    read, _ = outcomes("losses").of(lambda: parse_loss(loss), "--loss")
    if read is not None and read[0] != "image":
        assert 0 <= read[1] <= 1
        channel_level(*read)
    read, _ = outcomes("blends").of(lambda: parse_blend(blend), "--prompt-blend")
    if read is not None:
        assert read[0].strip()


@bounded
@given(scale=NUMBERS, every=st.integers(-2, 9))
def test_a_losss_settings_are_valid_or_refused_by_name(outcomes, scale, every):
    made, _ = outcomes("settings of losses").of(
        lambda: LossGuidance(channel_level("blue"), scale, every), "scale=", "periodicity="
    )
    if made is not None:
        assert math.isfinite(made.scale)
        assert made.periodicity >= 1
