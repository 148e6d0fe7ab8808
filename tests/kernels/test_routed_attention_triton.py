"""The Triton kernel: on a GPU, or on the CPU in Triton's interpreter (test_interpreter.py)."""

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pivotal_kernels.routed_attention import routed_attention
from pivotal_kernels.routed_attention.op import routed_attention_op
from pivotal_kernels.testing import assert_as_exact, routed_attention_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [(1, 1), (63, 77), (65, 128), (5, 129), (17, 231)]  # queries, keys


def inputs_of(generator, **options):
    options = {"rows": 3, "heads": 1, "queries": 17, "length": 39, **options}
    return routed_attention_inputs(generator, **options).mapped(lambda t: t.to(DEVICE))


def against_oracle(inputs, gate=None):
    actual = routed_attention(**inputs.arguments(), gate=gate, impl="triton")
    plain = routed_attention(**inputs.arguments(), gate=gate, impl="reference")
    exact_gate = None if gate is None else gate.double()
    exact = routed_attention(**inputs.double().arguments(), gate=exact_gate, impl="reference")
    assert_as_exact(actual.out, plain.out, exact.out, "out")
    assert (actual.word_maps is None) == (inputs.words is None)
    if inputs.words is not None:
        assert_as_exact(actual.word_maps, plain.word_maps, exact.word_maps, "word_maps")
    return actual


@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.float16, width) for width in (12, 40, 64, 80, 160)]
    + [(dtype, width) for dtype in (torch.float32, torch.bfloat16) for width in (12, 80)],
)
def test_every_head_size_is_as_exact_as_plain_torch(generator, dtype, width):
    against_oracle(inputs_of(generator, width=width, columns=5, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "queries", "length"),
    [(torch.float16, *sizes) for sizes in LENGTHS]
    + [(dtype, 5, 129) for dtype in (torch.float32, torch.bfloat16)]
    + [
        pytest.param(dtype, *sizes, marks=pytest.mark.slow)
        for dtype in (torch.float32, torch.bfloat16)
        for sizes in LENGTHS
        if sizes != (5, 129)
    ],
)
def test_every_length_is_as_exact_as_plain_torch(generator, dtype, queries, length):
    against_oracle(
        inputs_of(
            generator, rows=2, queries=queries, length=length, width=12, columns=3, dtype=dtype
        )
    )


@pytest.mark.parametrize(("queries", "length"), [(1000, 77), (9, 1000)])
def test_long_odd_sizes_are_as_exact_as_plain_torch(generator, queries, length):
    against_oracle(
        inputs_of(generator, rows=1, queries=queries, length=length, width=16, dtype=torch.float16)
    )


@pytest.mark.parametrize(("heads", "columns"), [(1, 1), (3, None), (3, 16), (3, 17)])
def test_any_number_of_word_columns_is_a_mean_over_heads(generator, heads, columns):
    against_oracle(inputs_of(generator, heads=heads, length=7, width=16, columns=columns))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
)
def test_strides_are_followed(generator, dtype):
    length = 77 if dtype == torch.float32 else 20  # several blocks of keys, and one
    inputs = inputs_of(generator, rows=2, heads=2, length=length, columns=5, dtype=dtype)
    strided = inputs.strided()
    assert not any(t.is_contiguous() for name, t in strided.arguments().items() if name != "donors")
    one, other = (routed_attention(**i.arguments(), impl="triton") for i in (inputs, strided))
    assert torch.equal(one.out, other.out)
    assert torch.equal(one.word_maps, other.word_maps)


@pytest.mark.slow
def test_offsets_beyond_32_bits_are_followed(generator, monkeypatch):
    """Rows that lie 2.4 GB apart in memory that is reserved and hardly touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    inputs = inputs_of(generator, columns=2, dtype=torch.float16)
    far = 1_200_000_000  # elements: two rows on, 32 bits are not enough

    def far_apart(tensor):
        memory = torch.empty(2 * far + tensor[0].numel(), dtype=tensor.dtype, device=DEVICE)
        return memory.as_strided(tensor.shape, (far, *tensor.stride()[1:])).copy_(tensor)

    spread = replace(
        inputs, **{name: far_apart(getattr(inputs, name)) for name in ("query", "key", "value")}
    )
    one, other = (routed_attention(**i.arguments(), impl="triton") for i in (inputs, spread))
    assert torch.equal(one.out, other.out)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 3),
    heads=st.integers(1, 2),
    queries=st.integers(1, 100),
    length=st.integers(1, 200),
    width=st.integers(1, 160),
    columns=st.none() | st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
    gated=st.booleans(),
)
def test_any_shape_is_right_to_a_few_roundings(seed, strided, gated, **shape):
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs_of(generator, **shape)
    gate = torch.rand(shape["rows"], generator=generator).round().to(DEVICE) if gated else None
    given = inputs.strided() if strided else inputs
    actual = routed_attention(**given.arguments(), gate=gate, impl="triton")
    exact_gate = None if gate is None else gate.double()
    sure = inputs.double()
    exact = routed_attention(**sure.arguments(), gate=exact_gate, impl="reference")
    sizes = replace(sure, value=sure.value.abs(), mix=sure.mix.abs(), keep=sure.keep.abs())
    most = routed_attention(**sizes.arguments(), gate=exact_gate, impl="reference")
    roundings = 8 * torch.finfo(shape["dtype"]).eps
    for found, expected, size in zip(actual, exact, most, strict=True):
        if found is not None:
            assert ((found.double() - expected).abs() <= roundings * size).all()


def test_its_memory_is_what_the_next_projection_reads_without_a_copy(generator):
    out = routed_attention(**inputs_of(generator, heads=2).arguments(), impl="triton").out
    assert out.transpose(1, 2).is_contiguous()


def test_a_gate_opens_rows_one_by_one(generator):
    inputs = inputs_of(generator, rows=4, columns=3, length=20)
    gate = torch.tensor([1.0, 0, 0.25, 0], device=DEVICE)
    actual = against_oracle(inputs, gate)
    plain = torch.nn.functional.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
    torch.testing.assert_close(actual.out[gate == 0], plain[gate == 0], rtol=1e-5, atol=1e-5)


def test_a_closed_row_never_reads_its_donor(generator):
    inputs = inputs_of(generator, rows=2, length=20)
    out = routed_attention(
        **replace(inputs, donors=torch.tensor([0, 10**6], device=DEVICE)).arguments(),
        gate=torch.tensor([1.0, 0], device=DEVICE),
        impl="triton",
    ).out
    assert out.isfinite().all()


@pytest.mark.parametrize("stranger", [-1, 3, 2**40])
def test_a_donor_outside_the_batch_is_not_read_but_shows(generator, stranger):
    inputs = inputs_of(generator, length=20, columns=2)
    lost = replace(inputs, donors=inputs.donors.clone())
    lost.donors[1] = stranger
    found, sure = (routed_attention(**i.arguments(), impl="triton") for i in (lost, inputs))
    for one, other in zip(found, sure, strict=True):
        assert one[1].isnan().all()
        assert torch.equal(one[::2], other[::2])


def test_identity_routes_are_plain_attention(generator):
    inputs = inputs_of(generator, identity=True)
    out = routed_attention(**inputs.arguments(), impl="triton").out
    plain = torch.nn.functional.scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)


def test_rows_in_another_order_are_the_same_rows(generator):
    inputs = inputs_of(generator, rows=5, columns=3, length=20)
    order = torch.tensor([4, 2, 0, 3, 1], device=DEVICE)
    place = order.argsort()
    shuffled = replace(
        inputs,
        **{k: v[order] for k, v in inputs.arguments().items() if k != "donors"},
        donors=place[inputs.donors[order]],
    )
    one = routed_attention(**inputs.arguments(), impl="triton")
    other = routed_attention(**shuffled.arguments(), impl="triton")
    assert torch.equal(other.out, one.out[order])
    assert torch.equal(other.word_maps, one.word_maps[order])


def test_running_twice_gives_the_same_bits(generator):
    inputs = inputs_of(generator, heads=3, columns=3, length=20)
    one, other = (routed_attention(**inputs.arguments(), impl="triton") for _ in range(2))
    assert torch.equal(one.out, other.out)
    assert torch.equal(one.word_maps, other.word_maps)


def test_large_scores_do_not_overflow(generator):
    inputs = inputs_of(generator, rows=1, length=150, dtype=torch.float16)
    against_oracle(replace(inputs, query=60 * inputs.query))


def test_nothing_asked_is_nothing_answered(generator):
    inputs = inputs_of(generator, queries=0, columns=3)
    out, maps = routed_attention(**inputs.arguments(), impl="triton")
    assert out.shape == (3, 1, 0, 40)
    assert maps.shape == (3, 0, 3)


def test_float64_is_refused_with_the_reason(generator):
    inputs = inputs_of(generator).double()
    with pytest.raises(ValueError, match=r"triton needs torch.float16 or .*float32$"):
        routed_attention(**inputs.arguments(), impl="triton")


def operator_arguments(inputs, gate):
    given = inputs.arguments()
    words = given.pop("words")
    return (*given.values(), gate, words, 0.25)


@pytest.mark.parametrize(
    "checks",
    [
        ("test_schema", "test_autograd_registration", "test_faketensor"),
        pytest.param("test_aot_dispatch_dynamic", marks=pytest.mark.slow),
    ],
)
def test_the_operator_is_registered_as_torch_asks(generator, checks):
    inputs = inputs_of(generator, rows=2, queries=5, length=7, width=16, columns=3).strided()
    arguments = operator_arguments(inputs, torch.ones(2, device=DEVICE))
    for tensor in arguments[:3]:
        tensor.requires_grad_()
    torch.library.opcheck(routed_attention_op, arguments, test_utils=checks)


def test_the_operator_is_registered_as_torch_asks_without_words_and_gate(generator):
    inputs = inputs_of(generator, rows=2, queries=5, length=7, width=16)
    arguments = operator_arguments(inputs, None)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(routed_attention_op, arguments, test_utils=checks)


def test_gradients_are_those_of_two_attentions(generator):
    inputs = inputs_of(generator, queries=9, length=7, width=16, columns=2)
    gate = torch.tensor([1.0, 0, 1], device=DEVICE)

    def gradients(impl):
        given = {
            name: tensor.clone().requires_grad_() if name != "donors" else tensor
            for name, tensor in (inputs.arguments() | {"gate": gate}).items()
        }
        out, maps = routed_attention(**given, impl=impl)
        variables = {name: t for name, t in given.items() if t.requires_grad}
        loss = out.square().sum() + maps.pow(3).sum()
        return dict(zip(variables, torch.autograd.grad(loss, variables.values()), strict=True))

    expected = gradients("reference")
    assert expected.keys() == {"query", "key", "value", "mix", "keep", "words", "gate"}
    for name, gradient in gradients("triton").items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_gradient_of_the_maps_alone_is_given(generator):
    inputs = inputs_of(generator, queries=9, length=7, width=16, columns=2)
    inputs.query.requires_grad_()
    found = [
        torch.autograd.grad(
            routed_attention(**inputs.arguments(), impl=impl).word_maps.square().sum(),
            inputs.query,
        )[0]
        for impl in ("triton", "reference")
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_compiled_whole_it_is_what_it_was_eager(generator):
    inputs = inputs_of(generator, rows=2, queries=5, length=7, width=16, columns=3)

    def run(inputs):
        return routed_attention(**inputs.arguments(), impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), run(inputs), rtol=0, atol=0)
