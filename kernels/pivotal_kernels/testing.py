"""What tests of ops share: input factories, and the oracle that says how wrong a kernel may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoutedInputs:
    """Arguments of `routed_attention`; shapes as there."""

    query: Tensor  # [B, H, N, D]
    key: Tensor  # [B, H, L, D]
    value: Tensor  # [B, H, L, D]
    donors: Tensor  # [B] int64
    mix: Tensor  # [B, L, L] float32, or float64 after `double`
    keep: Tensor  # [B, L] likewise
    words: Tensor | None  # [B, L, K] likewise

    def arguments(self) -> dict[str, Any]:
        """By name, for `routed_attention(**inputs.arguments())`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> RoutedInputs:
        """Every tensor there is, changed."""
        present = {name: t for name, t in self.arguments().items() if t is not None}
        return replace(self, **{name: change(tensor) for name, tensor in present.items()})

    def double(self) -> RoutedInputs:
        """The same numbers in float64: what the oracle computes its exact answer from."""
        return self.mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def strided(self) -> RoutedInputs:
        """The same numbers with no floating tensor contiguous, as projections and slices leave
        them.
        """
        return replace(
            self,
            query=_heads_inside(self.query),
            key=_heads_inside(self.key),
            value=_heads_inside(self.value),
            mix=self.mix.transpose(1, 2).contiguous().transpose(1, 2),
            keep=torch.stack([self.keep, self.keep], dim=-1)[..., 0],
            words=None if self.words is None else torch.cat([self.words] * 2, -1).chunk(2, -1)[1],
        )


def routed_attention_inputs(
    generator: torch.Generator,
    *,
    rows: int = 4,
    heads: int = 2,
    queries: int = 63,
    length: int = 77,
    width: int = 40,
    columns: int | None = None,
    dtype: torch.dtype = torch.float32,
    identity: bool = False,
) -> RoutedInputs:
    """Random inputs as a Prompt-to-Prompt edit makes them: donors permuted, a mapper with split and
    merged words, weights up to 2 and below 0, some tokens with their own attention.

    identity: routes that change nothing instead. columns: word columns, None for no words.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    donors = torch.randperm(rows, generator=generator)
    share = torch.rand(rows, 1, length, generator=generator).round(decimals=1)
    gather = torch.randint(length, (rows, length), generator=generator)
    mapper = torch.nn.functional.one_hot(gather, length).transpose(1, 2).float()
    weights = 3 * torch.rand(rows, length, generator=generator) - 1
    mix = mapper * share * weights[:, None]
    keep = weights * (1 - share[:, 0])
    if identity:
        donors, mix, keep = torch.arange(rows), torch.zeros_like(mix), torch.ones_like(keep)
    words = None
    if columns is not None:
        words = (torch.rand(rows, length, columns, generator=generator) < 0.3).float()
    return RoutedInputs(
        query=normal(rows, heads, queries, width).to(dtype),
        key=normal(rows, heads, length, width).to(dtype),
        value=normal(rows, heads, length, width).to(dtype),
        donors=donors,
        mix=mix,
        keep=keep,
        words=words,
    )


@dataclass(frozen=True)
class _Tensors:
    """Dataclasses of floating tensors, rows first."""

    def arguments(self) -> dict[str, Any]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(t) for name, t in self.arguments().items()})

    def select(self, rows: Tensor) -> Self:
        return self.mapped(lambda tensor: tensor[rows])

    def float(self) -> Self:
        """The same numbers in float32 where they were narrower; levels stay float64."""
        return self.mapped(lambda t: t.to(torch.promote_types(t.dtype, torch.float32)))

    def double(self) -> Self:
        return self.mapped(Tensor.double)


@dataclass(frozen=True)
class StepInputs(_Tensors):
    """What `guided_step` takes; shapes as there."""

    eps: Tensor
    x0: Tensor
    to_alpha_bar: Tensor
    uncond_eps: Tensor
    uncond_x0: Tensor
    guidance_scale: Tensor
    offset: Tensor

    def step(self) -> dict[str, Any]:
        """For `guided_step(**inputs.step())`."""
        given = self.arguments()
        return {"uncond": (given.pop("uncond_eps"), given.pop("uncond_x0")), **given}

    def strided(self) -> StepInputs:
        """The same numbers as channels-last networks and slices leave them in memory."""
        return StepInputs(
            eps=self.eps.to(memory_format=torch.channels_last),
            x0=_every_other(self.x0),
            to_alpha_bar=_every_other(self.to_alpha_bar),
            uncond_eps=self.uncond_eps.transpose(2, 3).contiguous().transpose(2, 3),
            uncond_x0=_every_other(self.uncond_x0),
            guidance_scale=_every_other(self.guidance_scale),
            offset=self.offset[:1].expand(self.offset.shape),
        )


@dataclass(frozen=True)
class PredictionInputs(_Tensors):
    """What `eps_and_x0` and `noise_residual` take; shapes as there."""

    prediction: Tensor
    latents: Tensor
    alpha_bar: Tensor
    scale: Tensor
    offset: Tensor

    def strided(self) -> PredictionInputs:
        """The same numbers as channels-last networks and slices leave them in memory."""
        return PredictionInputs(
            prediction=self.prediction.to(memory_format=torch.channels_last),
            latents=_every_other(self.latents),
            alpha_bar=_every_other(self.alpha_bar),
            scale=_every_other(self.scale),
            offset=self.offset[:1].expand(self.offset.shape),
        )


def guided_step_inputs(generator: torch.Generator, **shape: Any) -> StepInputs:
    """Random inputs of every row with its own noise level, guidance up to 10."""
    draw = _Draw(generator, **shape)
    return StepInputs(
        eps=draw.normal(),
        x0=draw.normal(),
        to_alpha_bar=draw.uniform(0.005, 1),
        uncond_eps=draw.normal(),
        uncond_x0=draw.normal(),
        guidance_scale=draw.uniform(0, 10).to(draw.working),
        offset=draw.normal(),
    )


def prediction_inputs(generator: torch.Generator, **shape: Any) -> PredictionInputs:
    """Random inputs of every row at its own noise level."""
    draw = _Draw(generator, **shape)
    return PredictionInputs(
        prediction=draw.normal(),
        latents=draw.normal(),
        alpha_bar=draw.uniform(0.005, 0.995),
        scale=draw.uniform(-2, 10).to(draw.working),
        offset=draw.normal(),
    )


@dataclass(frozen=True)
class _Draw:
    generator: torch.Generator
    rows: int = 3
    channels: int = 4
    height: int = 5
    width: int = 7
    dtype: torch.dtype = torch.float32

    @property
    def working(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def normal(self) -> Tensor:
        shape = (self.rows, self.channels, self.height, self.width)
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def uniform(self, low: float, high: float) -> Tensor:
        """[rows] float64."""
        drawn = torch.rand(self.rows, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * drawn


def _every_other(tensor: Tensor) -> Tensor:
    """The same numbers, each beside another in memory."""
    return torch.stack([tensor] * 2, dim=-1)[..., 1]


def assert_as_exact(actual: Tensor, plain: Tensor, exact: Tensor, name: str = "result") -> None:
    """The oracle: a kernel's error against float64 is at most twice that of plain PyTorch.

    actual: the kernel's; plain: the obvious eager code's in the same dtype; exact: float64. Judged
    by root mean square and by the largest error. Some roundings of exact itself are allowed
    besides: plain PyTorch may happen to be exact, and the largest of few entries is down to luck.
    Raises AssertionError.
    """
    if actual.dtype != plain.dtype or actual.shape != exact.shape:
        raise AssertionError(
            f"{name}: {actual.dtype} {list(actual.shape)}, where {plain.dtype} "
            f"{list(exact.shape)} is expected"
        )
    eps = torch.finfo(actual.dtype).eps
    for measure, size, roundings in (("root mean square", _rms, 0.5), ("largest", _largest, 2)):
        error = size(actual.double() - exact)
        allowed = 2 * size(plain.double() - exact) + roundings * eps * size(exact)
        if not error <= allowed:  # also where error is NaN
            raise AssertionError(
                f"{name}: {measure} error {error:.3g} against float64; {allowed:.3g} is allowed"
            )


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def _heads_inside(tensor: Tensor) -> Tensor:
    """[B, H, N, D] in memory laid out as [B, N, H, D], as linear projections give it."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
