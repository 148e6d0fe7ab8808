import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from pivotal_kernels.backends import Backend
from pivotal_kernels.routed_attention import BACKENDS, routed_attention
from pivotal_kernels.testing import assert_as_exact, routed_attention_inputs

IMPLEMENTATIONS = [
    "reference",
    "sdpa",
]  # what a CPU runs
FAST = ["sdpa"]


def against_oracle(inputs, impl):
    """One implementation, the reference in the same dtype, and the reference in float64."""
    actual = routed_attention(**inputs.arguments(), impl=impl)
    plain = routed_attention(**inputs.arguments(), impl="reference")
    exact = routed_attention(**inputs.double().arguments(), impl="reference")
    assert_as_exact(actual.out, plain.out, exact.out, "out")
    assert (actual.word_maps is None) == (inputs.words is None)
    if inputs.words is not None:
        assert_as_exact(actual.word_maps, plain.word_maps, exact.word_maps, "word_maps")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("columns", [None, 1, 5])
@pytest.mark.parametrize("width", [12, 16, 40, 64, 80, 160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_head_size_is_as_exact_as_plain_torch(generator, impl, dtype, width, columns):
    against_oracle(
        routed_attention_inputs(generator, width=width, columns=columns, dtype=dtype), impl
    )


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("queries", [1, 63, 256])
@pytest.mark.parametrize("length", [1, 7, 77, 154])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_length_is_as_exact_as_plain_torch(generator, impl, dtype, queries, length):
    inputs = routed_attention_inputs(
        generator, queries=queries, length=length, width=16, columns=5, dtype=dtype
    )
    against_oracle(inputs, impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("columns", [None, 5])
def test_all_implementations_agree_in_float64(generator, impl, columns):
    inputs = routed_attention_inputs(generator, columns=columns, dtype=torch.float64).double()
    actual = routed_attention(**inputs.arguments(), impl=impl)
    expected = by_hand(inputs)
    torch.testing.assert_close(actual.out, expected[0], rtol=1e-12, atol=1e-12)
    if columns is not None:
        torch.testing.assert_close(actual.word_maps, expected[1], rtol=1e-12, atol=1e-12)


def by_hand(inputs):
    """The contract, one row and one head at a time."""
    rows, heads, _, width = inputs.query.shape
    out, maps = [], []
    for row in range(rows):
        edited = []
        for head in range(heads):
            own, borrowed = (
                (inputs.query[r, head] @ inputs.key[r, head].T / width**0.5).softmax(dim=-1)
                for r in (row, inputs.donors[row])
            )
            edited.append(borrowed @ inputs.mix[row] + own * inputs.keep[row])
        out.append(torch.stack([m @ v for m, v in zip(edited, inputs.value[row], strict=True)]))
        if inputs.words is not None:
            maps.append(sum(edited) / heads @ inputs.words[row])
    return torch.stack(out), torch.stack(maps) if maps else None


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_in_memory_changes_nothing_but_rounding(generator, impl, dtype):
    inputs = routed_attention_inputs(generator, columns=5, dtype=dtype)
    strided = inputs.strided()
    for name, tensor in strided.arguments().items():
        assert name == "donors" or not tensor.is_contiguous(), name
        assert torch.equal(tensor, getattr(inputs, name))
    against_oracle(strided, impl)
    one, other = (routed_attention(**i.arguments(), impl=impl) for i in (inputs, strided))
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(one.out, other.out, **tolerance)
    torch.testing.assert_close(one.word_maps, other.word_maps, **tolerance)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("columns", [None, 5])
def test_identity_routes_are_plain_attention(generator, impl, columns):
    inputs = routed_attention_inputs(
        generator, columns=columns, identity=True, dtype=torch.float64
    ).double()
    out, maps = routed_attention(**inputs.arguments(), impl=impl)
    plain = scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    if columns is not None:
        scores = inputs.query @ inputs.key.transpose(-1, -2) * 40**-0.5
        words = (scores.softmax(dim=-1) @ inputs.words[:, None]).mean(dim=1)
        torch.testing.assert_close(maps, words, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_row_that_takes_everything_has_its_donors_attention(generator, impl):
    inputs = routed_attention_inputs(generator, rows=5, dtype=torch.float64).double()
    inputs = replace(
        inputs,
        donors=torch.tensor([3, 0, 0, 2, 1]),
        mix=torch.eye(77).double().repeat(5, 1, 1),
        keep=torch.zeros(5, 77).double(),
    )
    out, _ = routed_attention(**inputs.arguments(), impl=impl)
    for row, donor in enumerate([3, 0, 0, 2, 1]):
        expected = scaled_dot_product_attention(
            inputs.query[donor], inputs.key[donor], inputs.value[row]
        )
        torch.testing.assert_close(out[row], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rows_in_another_order_are_the_same_rows(generator, impl):
    inputs = routed_attention_inputs(generator, rows=5, columns=3, dtype=torch.float64).double()
    order = torch.tensor([4, 2, 0, 3, 1])
    place = order.argsort()
    shuffled = replace(
        inputs,
        **{k: v[order] for k, v in inputs.arguments().items() if k != "donors"},
        donors=place[inputs.donors[order]],
    )
    one = routed_attention(**inputs.arguments(), impl=impl)
    other = routed_attention(**shuffled.arguments(), impl=impl)
    torch.testing.assert_close(other.out, one.out[order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.word_maps, one.word_maps[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_given_scale_takes_the_place_of_the_usual_one(generator, impl):
    inputs = routed_attention_inputs(generator, columns=2, dtype=torch.float64).double()
    usual = routed_attention(**inputs.arguments(), impl=impl)
    doubled = replace(inputs, query=2 * inputs.query)
    scaled = routed_attention(**doubled.arguments(), impl=impl, scale=40**-0.5 / 2)
    torch.testing.assert_close(scaled.out, usual.out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled.word_maps, usual.word_maps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("columns", [None, 5])
@pytest.mark.parametrize("width", [12, 40])
def test_gradients_are_the_references(generator, impl, columns, width):
    inputs = routed_attention_inputs(
        generator, queries=17, length=7, width=width, columns=columns, dtype=torch.float64
    ).double()

    def gradients(chosen):
        given = {
            name: tensor.clone().requires_grad_() if name not in ("donors", "words") else tensor
            for name, tensor in inputs.arguments().items()
        }
        out, maps = routed_attention(**given, impl=chosen)
        loss = out.square().sum() + (0 if maps is None else maps.pow(3).sum())
        variables = {name: t for name, t in given.items() if t is not None and t.requires_grad}
        return dict(zip(variables, torch.autograd.grad(loss, variables.values()), strict=True))

    expected = gradients("reference")
    assert expected.keys() == {"query", "key", "value", "mix", "keep"}
    for name, gradient in gradients(impl).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("name", ["query", "key", "value", "mix", "keep", "words"])
def test_a_gradient_of_one_input_alone_is_the_references(generator, impl, name):
    inputs = routed_attention_inputs(generator, queries=9, length=7, width=16, columns=2).double()

    def gradient(chosen):
        given = inputs.arguments()
        given[name] = given[name].clone().requires_grad_()
        out, maps = routed_attention(**given, impl=chosen)
        return torch.autograd.grad(out.square().sum() + maps.pow(3).sum(), given[name])

    torch.testing.assert_close(gradient(impl), gradient("reference"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("query", (4, 63, 40)),
        ("key", (4, 2, 77, 39)),
        ("key", (4, 77, 40)),
        ("key", (77, 40)),
        ("key", (3, 2, 77, 40)),
        ("value", (4, 2, 76, 40)),
        ("value", (4, 2, 77, 48)),
        ("donors", (3,)),
        ("mix", (4, 77, 76)),
        ("mix", (77, 77)),
        ("keep", (4, 76)),
        ("keep", (4, 1, 77)),
        ("words", (4, 76, 5)),
        ("words", (4, 77)),
    ],
)
def test_a_wrong_shape_names_its_tensor(generator, name, shape):
    given = routed_attention_inputs(generator, columns=5).arguments()
    given[name] = torch.zeros(shape, dtype=given[name].dtype)
    with pytest.raises(ValueError, match=rf"{name} has shape \[{', '.join(map(str, shape))}\]"):
        routed_attention(**given)


def test_an_unknown_impl_is_refused_with_what_is_accepted(generator):
    inputs = routed_attention_inputs(generator)
    with pytest.raises(ValueError, match="impl='flash' is unknown; accepted are auto, reference"):
        routed_attention(**inputs.arguments(), impl="flash")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_named_impl_never_falls_back(generator, impl, monkeypatch):
    def broken(*_):
        raise RuntimeError(f"{impl} is broken")

    monkeypatch.setitem(BACKENDS, impl, Backend(broken))
    with pytest.raises(RuntimeError, match=f"{impl} is broken"):
        routed_attention(**routed_attention_inputs(generator).arguments(), impl=impl)


class Shapes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return out


@pytest.mark.parametrize("columns", [None, 1, 5])
@pytest.mark.parametrize("width", [12, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_only_the_reference_makes_a_map(generator, columns, width, dtype, grad):
    inputs = routed_attention_inputs(generator, columns=columns, width=width, dtype=dtype)
    inputs.value.requires_grad_(grad)
    for impl in IMPLEMENTATIONS:
        with Shapes() as shapes:
            out, _ = routed_attention(**inputs.arguments(), impl=impl)
            if grad:
                out.sum().backward()
        made = any({63, 77} <= set(shape) for shape in shapes.seen)
        assert made == (impl == "reference"), (impl, shapes.seen)


@pytest.mark.parametrize("wrong", ["error", "nan", "dtype", "shape"])
def test_the_oracle_can_fail(wrong):
    exact = torch.linspace(-1, 1, 50, dtype=torch.float64)
    plain = exact.float()
    actual = {
        "error": plain + 1e-6,
        "nan": torch.where(plain > 0.9, torch.nan, plain),
        "dtype": exact,
        "shape": plain[:49],
    }[wrong]
    assert_as_exact(plain, plain, exact)
    with pytest.raises(AssertionError, match="result"):
        assert_as_exact(actual, plain, exact)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_closed_gate_is_the_identity_and_an_open_one_is_none(generator, impl):
    inputs = routed_attention_inputs(generator, columns=3, dtype=torch.float64).double()
    gate = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    out, maps = routed_attention(**inputs.arguments(), gate=gate, impl=impl)
    edited = routed_attention(**inputs.arguments(), impl=impl)
    plain = scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
    for row, is_open in enumerate(gate.bool()):
        expected = edited.out[row] if is_open else plain[row]
        torch.testing.assert_close(out[row], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps[gate.bool()], edited.word_maps[gate.bool()])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_result_is_linear_in_the_values(generator, impl):
    one, other = (
        routed_attention_inputs(generator, dtype=torch.float64).double() for _ in range(2)
    )
    other = replace(one, value=other.value)
    both = replace(one, value=2 * one.value - 3 * other.value)
    first, second, combined = (
        routed_attention(**inputs.arguments(), impl=impl).out for inputs in (one, other, both)
    )
    torch.testing.assert_close(combined, 2 * first - 3 * second, rtol=1e-11, atol=1e-11)


def test_a_named_impl_that_does_not_fit_says_what_it_needs(generator):
    inputs = routed_attention_inputs(generator, dtype=torch.float64).double()
    with pytest.raises(ValueError, match=r"float64 on cpu with heads of 40.*triton needs .*CUDA"):
        routed_attention(**inputs.arguments(), impl="triton")
    with pytest.raises(ValueError, match=r"xformers needs .*CUDA device and torch.float16 or"):
        routed_attention(**inputs.arguments(), impl="xformers")


def test_inputs_of_two_dtypes_are_refused(generator):
    inputs = routed_attention_inputs(generator)
    with pytest.raises(ValueError, match=r"key is torch.float16 where value is torch.float32"):
        routed_attention(**replace(inputs, key=inputs.key.half()).arguments())


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
@pytest.mark.parametrize("columns", [None, 3])
def test_compiled_whole_it_is_what_it_was_eager(generator, impl, columns):
    inputs = routed_attention_inputs(generator, columns=columns)
    gate = torch.tensor([1.0, 0, 1, 1])

    def run(inputs, gate):
        return routed_attention(**inputs.arguments(), gate=gate, impl=impl)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs, gate), run(inputs, gate), rtol=1e-6, atol=1e-6)


def test_xformers_is_given_its_own_layout(generator, monkeypatch):
    """xformers itself is no part of the tests: this checks what it would be handed."""

    def memory_efficient_attention(query, key, value, scale):
        assert query.shape == (4, 63, 2, 40)  # [B, N, H, D]
        assert key.shape == value.shape == (4, 77, 2, 40)
        inside = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return scaled_dot_product_attention(*inside, scale=scale).transpose(1, 2)

    module = ModuleType("xformers.ops")
    module.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", module)
    inputs = routed_attention_inputs(generator)
    *tensors, words = inputs.arguments().values()
    out, _ = BACKENDS["xformers"].run(*tensors, words, 40**-0.5)
    torch.testing.assert_close(out, routed_attention(**inputs.arguments()).out)
