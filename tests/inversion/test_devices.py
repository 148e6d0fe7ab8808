"""No method, edit or sampler lets tensors of two devices meet, as they would raise on a GPU.

The second device is emulated: tensors that say to be on "meta" and hold real values on the CPU.
"""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pivotal.driver import drive_many
from pivotal.editing.edit import Edit
from pivotal.editing.masactrl import MutualSelfAttention
from pivotal.editing.prompt_to_prompt import PromptToPrompt
from pivotal.editing.routes import Layers
from pivotal.inversion.registry import METHODS
from pivotal.model.unet import AttentionLayer
from pivotal.query import Denoise, Noise, NoiseGradient, NoiseLoss
from pivotal.runtime.buckets import BucketedDenoiser, Buckets
from pivotal.sampling.draws import seeded
from pivotal.sampling.samplers import SAMPLERS
from pivotal.tokens import Tokens

STEPS, SCALE, LENGTH = 2, 2.0, 7
ATEN = torch.ops.aten
# What takes tensors of the host too, as indices or as what is copied.
CROSSING = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN._to_copy.default, ATEN.copy_.default}
INDEXING = {"aten::index.Tensor", "aten::index_put_"}
CASES = [
    *((name, {}) for name in METHODS if name != "renoise"),
    ("renoise", {"divergence_weight": 1e-6, "regularisation_steps": 1}),
    ("edit-friendly", {"skip": 0.0}),
    ("finite-difference", {"refine_skip": 0.0, "gradient": "exact"}),
    ("fixed-point", {"acceleration": "anderson"}),
    ("k-euler", {"derivative_at": "mean"}),
    ("negative-prompt", {"proximal": "soft", "inversion_guidance": 0.5, "proximal_below": 1000.0}),
    ("newton-raphson", {"through_network": True}),
    ("null-text-ablation", {"embeddings": "one", "iterations": 1}),
    ("null-text-line-search", {"direction": "subspace"}),
    ("null-text-line-search", {"direction": "lbfgs"}),
]


class Elsewhere(Tensor):
    """A tensor on the emulated device; `inner` is what it holds."""

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="meta"
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Emulation(TorchDispatchMode):
    """Has tensors made where they are asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [isinstance(each, Elsewhere) for each in given]
    host = [each.shape for each, away in zip(given, there, strict=True) if not away and each.ndim]
    indexed = func.name() in INDEXING and not there[0]  # the host's, by what is elsewhere
    if any(there) and host and (indexed or func not in CROSSING):
        raise RuntimeError(f"{func} is given tensors of two devices, {host} on the host")
    away = any(there)
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]).type == "meta"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(inside, args), **tree_map(inside, kwargs))
    if func._schema.is_mutable:
        return args[0]
    return tree_map(lambda each: outside(each) if away else each, out)


def inside(value):
    return value.inner if isinstance(value, Elsewhere) else value


def outside(value):
    return Elsewhere(value) if isinstance(value, Tensor) else value


class Toy:
    """Noise that is linear in latents and conditioning, found on the CPU and answered where the
    query is, all of which must be there.
    """

    name, answers = "toy", frozenset({Denoise, NoiseGradient})

    def __init__(self, place):
        self.place = place

    def answer(self, query):
        query.mapped(self.require)
        return self.found(query.to("cpu")).to(self.place)

    def require(self, tensor):
        assert tensor.device.type == self.place
        return tensor

    def found(self, query):
        inputs = {"latents": query.latents, "hidden_states": query.conditioning.hidden_states}
        with torch.enable_grad():
            wanted = inputs[getattr(query, "wrt", "latents")].detach().clone().requires_grad_()
            z, states = {**inputs, getattr(query, "wrt", "latents"): wanted}.values()
            eps = 0.3 * z + 0.1 * states.mean(dim=(1, 2))[:, None, None, None].to(z.dtype)
            if isinstance(query, NoiseGradient):
                residual = query.scale[:, None, None, None] * eps + query.offset
                loss = residual.square().mean(dim=(1, 2, 3))
                (gradient,) = torch.autograd.grad(loss.sum(), wanted)
                return NoiseLoss(eps.detach(), loss.detach(), gradient)
        signal, spread = query.alpha_bars.sqrt(), (1 - query.alpha_bars).sqrt()
        signal, spread = (each.to(z.dtype)[:, None, None, None] for each in (signal, spread))
        eps, maps = eps.detach(), None
        if query.routes is not None:
            places = torch.arange(16.0).view(1, 1, 4, 4)
            maps = places * query.routes.words.sum(dim=1)[:, :, None, None]
        return Noise(eps, (query.latents - spread * eps) / signal, maps)


@pytest.fixture
def emulated(monkeypatch):
    """The emulated device. What torch makes of numbers goes past a mode: it is moved."""
    tensor, new_tensor = torch.tensor, Tensor.new_tensor

    def made(data, *, dtype=None, device="cpu"):
        return tensor(data, dtype=dtype).to(device)

    def made_like(self, data):
        found = new_tensor(inside(self), data)
        return Elsewhere(found) if isinstance(self, Elsewhere) else found

    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(Tensor, "new_tensor", made_like)
    return Emulation


LAYERS = Layers((1, 2, 2, 1), (1, 2, 2, 1))
ATTENTION = [
    AttentionLayer(f"{kind} {index}", kind, index, 1)
    for kind in ("self", "cross")
    for index in range(4)
]


@pytest.fixture
def control():
    """Makes a control with all that an edit can have, of a source and two targets."""

    def tokens(prompt):
        ids = tuple(sum(map(ord, word)) for word in prompt.split())
        starts = [prompt.index(word) for word in prompt.split()]
        spans = [(s, s + len(w)) for s, w in zip(starts, prompt.split(), strict=True)]
        padding = LENGTH - len(ids) - 1
        return Tokens(
            prompt, (1, *ids, *[2] * padding), (None, *spans, *[None] * padding), len(ids) + 2
        )

    edits = [
        Edit("blue cat", blend=("cat",), mask=torch.ones(64, 64).bool(), feather=9.0),
        Edit("red dog", blend="auto", subtract=("red",), mutual=MutualSelfAttention(1, 0)),
    ]

    def make():
        targets = [tokens(edit.target) for edit in edits]
        return PromptToPrompt(tokens("red cat"), targets, edits, STEPS, LAYERS)

    return make


def run_all(algorithms, place):
    """In buckets and split, so that rows are selected, padded and joined."""
    bucketed = BucketedDenoiser(Toy(place), Buckets((2, 4, 6, 12)), ATTENTION)
    return [job.result() for job in drive_many(algorithms, bucketed, max_rows=7)]


def there_and_back(method, options, schedule, case, control, place):
    up = method.invert(schedule, *(each.to(place) for each in case(2)), options)
    (inverted,) = run_all([up], place)
    one = inverted.select(torch.tensor([0])).expand(3)
    _, prompts, nulls = (each.to(place) for each in case(3))
    down = method.replay(schedule, one, prompts, nulls, SCALE, control(), options)
    return run_all([down], place)[0]


@pytest.mark.parametrize(("name", "given"), CASES)
def test_a_method_and_its_edits_stay_on_one_device(name, given, control, gentle, case, emulated):
    method = METHODS[name]
    own = {"guidance_scale": SCALE} if method.fits_guidance else {}
    options = method.options_from(own | given)
    asked = (method, options, gentle(STEPS), case, control)
    expected = there_and_back(*asked, "cpu")
    with emulated():
        found = there_and_back(*asked, "meta")
    assert isinstance(found, Elsewhere)
    torch.testing.assert_close(found.inner, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_stays_on_one_device(name, control, gentle, case, emulated):
    sampler = SAMPLERS[name]

    def sampled(place):
        latents, prompts, nulls = (each.to(place) for each in case(3))
        drawing = {"draw": seeded([0, 1, 1])} if sampler.draws else {}
        options = sampler.options_from({"eta": 0.5} if "eta" in sampler.options else {})
        asked = (gentle(STEPS), latents, prompts, lambda _: nulls, SCALE, control())
        return run_all([sampler.sample(*asked, **options, **drawing)], place)[0]

    expected = sampled("cpu")
    with emulated():
        found = sampled("meta")
    torch.testing.assert_close(found.inner, expected, rtol=1e-6, atol=1e-6)


def test_the_emulation_tells_two_devices_apart(emulated):
    with emulated():
        there = torch.ones(3, device="meta")
        assert (there + 1).to("cpu").tolist() == [2, 2, 2]
        assert there[torch.tensor([0])].shape == (1,)
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="tensors of two devices"):
            torch.ones(3)[there.long()]
