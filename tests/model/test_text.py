import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import pivotal
from pivotal.errors import ModelError, NonFiniteError
from pivotal.model.load import load
from pivotal.model.text import TextEncoder
from pivotal.model.tokenizers import ClipTokenizer, StandInTokenizer
from pivotal.query import Conditioning

PROMPTS = ["the red cat", "A dog, and 2 cats!"]


@pytest.fixture(scope="module")
def sd(sd_folder):
    return load(sd_folder, family="sd1")


@pytest.fixture(scope="module")
def sdxl(sdxl_folder):
    return load(sdxl_folder, family="sdxl")


def test_sd_prompts_are_encoded_as_diffusers_does(sd, sd_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(
        sd_folder, local_files_only=True, safety_checker=None
    )
    with torch.no_grad():
        positive, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    conditioning = sd.text.encode([*PROMPTS, "", ""])
    torch.testing.assert_close(conditioning.hidden_states, torch.cat([positive, negative]))
    assert conditioning.hidden_states.dtype == torch.float32
    assert conditioning.pooled is None
    assert conditioning.time_ids is None


def test_sdxl_prompts_are_encoded_as_diffusers_does(sdxl, sdxl_folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True)
    with torch.no_grad():
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
            PROMPTS, device="cpu", do_classifier_free_guidance=True
        )
        time_ids = pipeline._get_add_time_ids((48, 32), (0, 0), (48, 32), torch.float32, 48)
    conditioning = Conditioning.cat(
        [
            sdxl.text.encode(PROMPTS, size=(48, 32)),
            sdxl.text.encode(["", ""], size=(48, 32), negative=True),
        ]
    )
    torch.testing.assert_close(conditioning.hidden_states, torch.cat([positive, negative]))
    torch.testing.assert_close(conditioning.pooled, torch.cat([pooled, negative_pooled]))
    torch.testing.assert_close(conditioning.time_ids, time_ids.repeat(4, 1))
    assert not conditioning.hidden_states[2:].any()
    assert not conditioning.pooled[2:].any()


def test_the_empty_prompt_is_encoded_where_the_model_does_not_zero_it(sdxl, sdxl_folder):
    plain = TextEncoder(sdxl.text.tokenizers, sdxl.text.encoders, default_size=(32, 32))
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        sdxl_folder, local_files_only=True, force_zeros_for_empty_prompt=False
    )
    with torch.no_grad():
        expected = pipeline.encode_prompt(["x"], device="cpu", do_classifier_free_guidance=True)
    asked = plain.encode([""], negative=True)
    torch.testing.assert_close(asked.hidden_states, expected[1])
    torch.testing.assert_close(asked.pooled, expected[3])


def test_sdxls_empty_prompt_is_encoded_where_it_is_not_the_negative_one(sdxl, sdxl_folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True)
    with torch.no_grad():
        expected, _, pooled, _ = pipeline.encode_prompt([""], device="cpu")
    conditioning = sdxl.text.encode([""])
    assert conditioning.hidden_states.any()
    torch.testing.assert_close(conditioning.hidden_states, expected)
    torch.testing.assert_close(conditioning.pooled, pooled)


def test_an_engine_guides_sdxl_from_zeros_towards_an_encoded_empty_prompt(sdxl):
    noting = Noting(pivotal.Engine(sdxl).denoiser, "hidden_states")
    engine = pivotal.Engine(sdxl, noting)
    engine.generate([""], num_inference_steps=1, guidance_scale=3.0, seed=0)
    assert sorted(torch.tensor(each).any().item() for each in noting.seen) == [False, True]


def test_time_ids_are_the_checkpoints_size_unless_said(sdxl):
    assert sdxl.text.encode(["a"]).time_ids.tolist() == [[32, 32, 0, 0, 32, 32]]


class Noting:
    """Passes queries on and notes their time ids, or other conditioning."""

    def __init__(self, inner, what="time_ids"):
        self.inner, self.name, self.answers, self.seen = inner, inner.name, inner.answers, []
        self.what = what

    def answer(self, query):
        self.seen += getattr(query.conditioning, self.what).tolist()
        return self.inner.answer(query)


@pytest.mark.parametrize(
    ("policy", "ids"), [("crop", [32, 64, 0, 16, 32, 32]), ("stretch", [32, 32, 0, 0, 32, 32])]
)
def test_every_question_knows_where_its_picture_was_cut_out(sdxl, policy, ids):
    noting = Noting(pivotal.Engine(sdxl).denoiser)
    engine = pivotal.Engine(sdxl, noting)
    engine._runner._probed = True
    pixels = np.full((64, 128, 3), 90, np.uint8)
    inversion = engine.invert(
        pixels, "a red cat", method="ddim", num_inference_steps=2, policy=policy
    )
    engine.edit(inversion, "a red dog")
    engine.style(inversion, "a red dog", amount=0.5)
    assert noting.seen
    assert all(each == ids for each in noting.seen)


def test_two_prompts_equal_two_times_one(sdxl):
    both = sdxl.text.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        one = sdxl.text.encode([prompt])
        torch.testing.assert_close(both.hidden_states[row], one.hidden_states[0])
        torch.testing.assert_close(both.pooled[row], one.pooled[0])


def test_nothing_is_truncated(sd):
    assert sd.text.max_length == 20
    with pytest.raises(ValueError, match=r"62 tokens.* takes 20: 'cat dog cat' and what follows"):
        sd.text.encode(["a cat", "cat dog " * 30])


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_are_a_list_of_at_least_one(sd, prompts):
    with pytest.raises(ValueError, match="a list with at least one prompt"):
        sd.text.encode(prompts)


def test_tokenizers_that_split_differently_are_refused(sdxl, sdxl_folder):
    tokenizers = [ClipTokenizer(sdxl_folder / "tokenizer", 20), StandInTokenizer(500, 20)]
    text = TextEncoder(tokenizers, sdxl.text.encoders, default_size=(32, 32))
    assert text.tokens("a cat").length == 4
    with pytest.raises(ValueError, match="differently from 'mergeable cat' on"):
        text.tokens("a mergeable cat")
    tokenizers[1] = StandInTokenizer(500, 10)
    with pytest.raises(ModelError, match="different lengths"):
        TextEncoder(tokenizers, sdxl.text.encoders, default_size=(32, 32))
    with pytest.raises(ValueError, match="2 tokenizers and 1 encoders"):
        TextEncoder(tokenizers, sdxl.text.encoders[:1], default_size=(32, 32))


def test_an_exclamation_mark_of_sdxl_has_one_place_or_is_refused(sdxl):
    """SDXL's second tokenizer pads with "!" and so never merges it."""
    assert sdxl.text.tokens("the dog!").length == 5
    assert sdxl.text.encode(["the dog!!"]).rows == 1


def test_broken_weights_raise_instead_of_passing_nan_on(sd_copy):
    model = load(sd_copy, family="sd1")
    with torch.no_grad():
        next(model.text.encoders[0].parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="hidden_states hold NaN"):
        model.text.encode(["a cat"])
