"""The kernels alone: routed attention in each implementation, beside attention without routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.suites.plan import Plan
from pivotal_kernels.routed_attention import BACKENDS, Impl, routed_attention
from pivotal_kernels.testing import RoutedInputs, assert_as_exact, routed_attention_inputs

SUITE = "kernels"
PLAIN = "plain attention, no routes"


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer's shape. Layers that report word maps have columns."""

    model: str
    heads: int
    queries: int
    width: int
    columns: int | None = None
    rows: int = 4
    length: int = 77


LAYERS = (
    Layer("shapes at 64", 4, 256, 32, columns=5),
    Layer("sd15 at 512", 8, 4096, 40),
    Layer("sd15 at 512", 8, 1024, 80),
    Layer("sd15 at 512", 8, 256, 160, columns=5),
    Layer("sd15 at 512", 8, 64, 160),
    Layer("sd21 at 768", 5, 9216, 64),
    Layer("sd21 at 768", 20, 576, 64, columns=5),
    Layer("sdxl at 1024", 10, 4096, 64),
    Layer("sdxl at 1024", 20, 1024, 64, columns=5),
)


def cases(plan: Plan) -> Iterator[Case]:
    """Four rows as one edit under guidance asks: two unconditional, the source, a target that
    borrows from it.
    """
    for layer in (LAYERS[0], LAYERS[4]) if plan.quick else LAYERS:
        for impl in (PLAIN, *BACKENDS):
            if plan.quick and impl == "reference":
                continue
            settings = {"layer": asdict(layer), "dtype": plan.dtype, "impl": impl}
            place = f"{layer.model}, {layer.queries} queries"
            yield Case(
                SUITE,
                f"{impl}: {place}",
                _preparing(layer, impl, plan),
                settings,
                place,
                needs=needs(impl, plan),
            )


def needs(impl: str, plan: Plan) -> str | None:
    """Why a kernel can't be timed by this plan, or None."""
    if not hasattr(torch, plan.dtype):
        return f"{plan.dtype} is a way to run a network; kernels alone take float dtypes"
    if impl in ("triton", "xformers") and plan.torch_device.type != "cuda":
        return f"{impl} needs a CUDA device"
    return None


def _preparing(layer: Layer, impl: str, plan: Plan) -> Any:
    def prepare() -> Prepared:
        inputs, gate = edit_inputs(layer, getattr(torch, plan.dtype), plan.torch_device)

        def run() -> Any:
            if impl == PLAIN:
                return scaled_dot_product_attention(inputs.query, inputs.key, inputs.value)
            return routed_attention(**inputs.arguments(), gate=gate, impl=cast(Impl, impl))

        def check(result: Any) -> Mapping[str, Any]:
            if impl != PLAIN:
                _against_float64(result, inputs, gate)
            return {}

        return Prepared(run, check)

    return prepare


def edit_inputs(
    layer: Layer, dtype: torch.dtype, device: torch.device
) -> tuple[RoutedInputs, Tensor]:
    """Fresh inputs laid out as projections leave them, and the gate: only the target is open."""
    made = routed_attention_inputs(
        torch.Generator().manual_seed(layer.queries),
        rows=layer.rows, heads=layer.heads, queries=layer.queries, length=layer.length,
        width=layer.width, columns=layer.columns, dtype=dtype,
    ).strided()  # fmt: skip
    donors = torch.arange(layer.rows)
    donors[-1] = layer.rows - 2
    gate = torch.zeros(layer.rows)
    gate[-1] = 1
    edit = replace(made, donors=donors).mapped(lambda tensor: tensor.to(device))
    return edit, gate.to(device)


def _against_float64(actual: Any, inputs: RoutedInputs, gate: Tensor) -> None:
    """The oracle of the tests: at most twice the plain implementation's error."""
    plain = routed_attention(**inputs.arguments(), gate=gate, impl="reference")
    exact = routed_attention(**inputs.double().arguments(), gate=gate.double(), impl="reference")
    try:
        assert_as_exact(actual.out, plain.out, exact.out, "out")
        if plain.word_maps is not None and exact.word_maps is not None:
            assert_as_exact(actual.word_maps, plain.word_maps, exact.word_maps, "word_maps")
    except AssertionError as error:
        raise WrongResultError(str(error)) from error
