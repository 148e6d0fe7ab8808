"""No attention map is made: no tensor that the networks' operations return has a map's shape."""

import copy
from collections import Counter

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from pivotal.attention_routes import AttentionRoutes
from pivotal.editing.edit import Edit
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.model.unet import RoutedUNet
from pivotal.query import Conditioning, Denoise, NoiseGradient
from pivotal.runtime.torch_denoiser import TorchDenoiser

LENGTH = 19
SIZE = (20, 28)  # N is 560, 140, 35: no other dimension in the network has these sizes, or L
QUERIES = {20 * 28, 10 * 14, 5 * 7}
SOURCE = "a red cat on the mat"
EDITS = [
    Edit("a red porcupine on the mat", blend=("cat", "porcupine"), subtract=("mat",)),
    Edit("a red cat on the leather sofa", weights={"leather": 2, "cat": -1}),
]


class Maps(TorchDispatchMode):
    """Counts the tensors that hold N x N or N x L entries for some layer, in any layout."""

    def __init__(self):
        super().__init__()
        self.kinds = Counter()
        self.operations = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations[func.overloadpacket.__name__] += 1
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.kinds[kind_of(tuple(tensor.shape))] += 1
        return out


def kind_of(shape):
    for queries in QUERIES.intersection(shape):
        if shape.count(queries) > 1:
            return "self"
        if LENGTH in shape:
            return "cross"
    return "none"


@pytest.fixture(scope="module")
def denoiser(unet):
    def make(impl="sdpa"):
        network = RoutedUNet(copy.deepcopy(unet).float(), word_map_downscale=2, impl=impl)
        return TorchDenoiser(network, "epsilon")

    return make


@pytest.fixture
def question(tokenize, embed, layers, schedule):
    """The first step of a guided edit of two targets: six rows."""
    prompts = ["", "", "", SOURCE, *[edit.target for edit in EDITS]]
    tokens = [tokenize(prompt, length=LENGTH) for prompt in prompts]
    routes = PromptToPrompt(tokens[3], tokens[4:], EDITS, schedule.steps, layers).routes(0)
    hidden = torch.stack([embed(prompt) for prompt in tokens]).float()
    level = next(schedule.descending())[1]
    latents = torch.randn(6, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    both = AttentionRoutes.cat([routes.identity_like(3), routes])
    return Denoise.at(latents, level, Conditioning(hidden), both)


def answered(denoiser, query):
    with Maps() as maps, torch.no_grad():
        answer = denoiser.answer(query)
    return answer, maps


def test_prompt_to_prompt_with_word_maps_makes_no_attention_map(denoiser, question):
    answer, maps = answered(denoiser(), question)
    assert maps.kinds["self"] == maps.kinds["cross"] == 0
    assert maps.kinds["none"] > 100
    assert answer.word_maps.shape == (6, question.routes.columns, 10, 14)
    assert not any("softmax" in name for name in maps.operations)


def test_explicit_maps_are_seen_where_they_are_made(denoiser, question):
    """The test above can fail: the reference's cross-attention maps, and torch's unfused ones."""
    _, maps = answered(denoiser("reference"), question)
    assert maps.kinds["cross"] > 0
    with sdpa_kernel(SDPBackend.MATH):
        _, maps = answered(denoiser(), question)
    assert maps.kinds["cross"] > 0
    assert maps.kinds["self"] > 0


@pytest.mark.parametrize("wrt", ["hidden_states", "latents"])
def test_a_gradient_makes_no_attention_map_forward_or_backward(denoiser, question, wrt):
    query = NoiseGradient(
        question.latents,
        question.timesteps,
        question.alpha_bars,
        question.conditioning,
        torch.ones(6),
        torch.zeros_like(question.latents),
        wrt,
    )
    answer, maps = answered(denoiser(), query)
    assert answer.gradient.abs().max() > 0
    assert any("attention" in name and "backward" in name for name in maps.operations)
    assert maps.kinds["self"] == maps.kinds["cross"] == 0
    with sdpa_kernel(SDPBackend.MATH):
        _, maps = answered(denoiser(), query)
    assert maps.operations["_softmax_backward_data"] > 0
    assert maps.kinds["self"] > 0
    assert maps.kinds["cross"] > 0
