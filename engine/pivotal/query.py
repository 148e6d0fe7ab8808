"""What an algorithm may ask of a denoiser, and what it is answered.

An algorithm is a generator that yields these and owns no model: `noise = yield from
Denoise.at(...)`. All tensors are batch first; a *row* is one entry of a UNet batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from .attention_routes import AttentionRoutes
from .schedule import NoiseLevel

Result = TypeVar("Result")
Wrt = Literal["hidden_states", "pooled", "latents"]
WRT: tuple[Wrt, ...] = ("hidden_states", "pooled", "latents")


class _Rows:
    """Dataclasses of tensors, batch first: selecting, joining and copying rows."""

    def select(self, rows: Tensor) -> Self:
        """The given rows (int64 [R]), as new tensors."""
        return self.mapped(lambda value: value[rows.to(value.device)])

    def part(self, start: int, stop: int) -> Self:
        """Rows from start to before stop, as views: unlike `select`, no device waits for indices
        from the host.
        """
        return self.mapped(lambda value: value[start:stop])

    def taken(self, rows: Sequence[int]) -> Self:
        """Rows by their places: `part` of a run, `select` of others."""
        start = rows[0] if rows else 0
        if list(rows) == list(range(start, start + len(rows))):
            return self.part(start, start + len(rows))
        return self.select(torch.tensor(rows))

    def owned(self) -> Self:
        """The same rows in memory of their own."""
        return self.mapped(Tensor.clone)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Rows of several, one after another. What is not a tensor is taken from the first."""
        joined: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], Tensor):
                joined[field.name] = torch.cat(values)
            elif isinstance(values[0], _Rows):
                joined[field.name] = type(values[0]).cat(values)
            else:
                joined[field.name] = values[0]
        return cls(**joined)

    def to(self, device: torch.device | str) -> Self:
        return self.mapped(lambda value: value.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor, those inside included, replaced by its change."""
        made: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = change(value)
            elif isinstance(value, _Rows):
                value = value.mapped(change)
            made[field.name] = value
        return type(self)(**made)


@dataclass(frozen=True)
class Conditioning(_Rows):
    """What the network is told besides latents and timestep. float32."""

    hidden_states: Tensor  # [B, L, D] token embeddings after the text encoder
    pooled: Tensor | None = None  # [B, P], SDXL's pooled vector
    time_ids: Tensor | None = None  # [B, 6], SDXL's sizes and crop

    @property
    def rows(self) -> int:
        return self.hidden_states.shape[0]

    def kind(self) -> Hashable:
        """Conditionings of one kind and length fit into one batch."""
        pooled = None if self.pooled is None else self.pooled.shape[1:]
        time_ids = None if self.time_ids is None else self.time_ids.shape[1:]
        return (self.hidden_states.shape[1:], self.hidden_states.dtype, pooled, time_ids)


@dataclass(frozen=True)
class Noise(_Rows):
    """The network's prediction as noise and as clean latents.

    float32, or float64 if the query's latents are.
    """

    eps: Tensor  # [B, C, h, w]
    x0: Tensor  # [B, C, h, w]
    word_maps: Tensor | None = None  # [B, K, mh, mw], where routes asked for them


@dataclass(frozen=True)
class NoiseLoss(_Rows):
    """`mean((scale * eps + offset)^2)` per row and its gradient. float32."""

    eps: Tensor  # [B, C, h, w]
    loss: Tensor  # [B]
    gradient: Tensor  # the shape of what was differentiated


@dataclass(frozen=True)
class ImageLoss(_Rows):
    """A user's loss per row, its gradient with respect to the latents, and the noise it came from.
    float32.
    """

    eps: Tensor  # [B, C, h, w]
    x0: Tensor  # [B, C, h, w], the network's own, without the query's offset
    loss: Tensor  # [B]
    gradient: Tensor  # [B, C, h, w]


@dataclass(frozen=True)
class _Query(_Rows):
    latents: Tensor  # [B, C, h, w] float32 (float64 where an exact method asks for it)
    timesteps: Tensor  # [B] float32, the model's training index, also between integers
    alpha_bars: Tensor  # [B] float64, the level at which the network's prediction is read
    conditioning: Conditioning

    def __post_init__(self) -> None:
        if self.latents.ndim != 4:
            raise ValueError(f"latents are [B, C, h, w]; got shape {list(self.latents.shape)}")
        for name in ("timesteps", "alpha_bars"):
            if getattr(self, name).shape != (self.rows,):
                raise ValueError(
                    f"{name} have shape {list(getattr(self, name).shape)}; one for each of "
                    f"{self.rows} rows is expected"
                )
        if self.conditioning.rows != self.rows:
            raise ValueError(
                f"{self.rows} rows of latents but {self.conditioning.rows} rows of conditioning"
            )

    @property
    def rows(self) -> int:
        return self.latents.shape[0]

    def batch_key(self) -> Hashable:
        """Queries with equal keys may share a UNet batch."""
        latents = self.latents
        return (type(self), latents.shape[1:], latents.dtype, self.conditioning.kind())

    def ties(self) -> list[list[int]]:
        """Rows that must stay in one batch, as groups; each row is its own unless routes tie it."""
        return [[row] for row in range(self.rows)]

    def without_company(self, answer: Any) -> Any:
        """An answer to these rows less what other rows of their batch made the denoiser add."""
        return answer


@dataclass(frozen=True)
class Denoise(_Query):
    """What noise is in these latents? Answered with `Noise`."""

    routes: AttentionRoutes | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routes is not None and self.routes.rows != self.rows:
            raise ValueError(f"{self.rows} rows of latents but {self.routes.rows} rows of routes")

    def __iter__(self) -> Generator[Denoise, Any, Noise]:
        answer: Noise = yield self
        return answer

    @classmethod
    def at(
        cls,
        latents: Tensor,
        level: NoiseLevel,
        conditioning: Conditioning,
        routes: AttentionRoutes | None = None,
        *,
        timestep: float | None = None,
    ) -> Denoise:
        """All rows at one noise level, asked at its timestep unless another is given."""
        timesteps, alpha_bars = every_row(latents, level, timestep)
        return cls(latents, timesteps, alpha_bars, conditioning, routes)

    def ties(self) -> list[list[int]]:
        return super().ties() if self.routes is None else self.routes.ties()

    def without_company(self, answer: Noise) -> Noise:
        """Word maps of this query's own columns; none without routes."""
        if answer.word_maps is None:
            return answer
        own = None if self.routes is None else answer.word_maps[:, : self.routes.columns]
        return replace(answer, word_maps=own)

    def part(self, start: int, stop: int) -> Denoise:
        if self.routes is None:
            return super().part(start, stop)
        routes = self.routes.select(torch.arange(start, stop, device=self.routes.donors.device))
        return replace(replace(self, routes=None).part(start, stop), routes=routes)

    def select(self, rows: Tensor) -> Denoise:
        if self.routes is None:
            return super().select(rows)
        routes = self.routes.select(rows.to(self.routes.donors.device))  # indices made local
        return replace(replace(self, routes=None).select(rows), routes=routes)

    @classmethod
    def cat(cls, parts: Sequence[Denoise]) -> Denoise:
        """Rows without routes among rows with routes carry the identity."""
        routed = next((part.routes for part in parts if part.routes is not None), None)
        routes = None
        if routed is not None:
            routes = AttentionRoutes.cat(
                [routed.identity_like(p.rows) if p.routes is None else p.routes for p in parts]
            )
        plain = super().cat([replace(part, routes=None) for part in parts])
        return replace(plain, routes=routes)


@dataclass(frozen=True)
class NoiseGradient(_Query):
    """How does `mean((scale * eps + offset)^2)` change with an input? Answered with `NoiseLoss`."""

    scale: Tensor  # [B] float32
    offset: Tensor  # [B, C, h, w] float32
    wrt: Wrt = "hidden_states"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wrt not in WRT:
            raise ValueError(f"wrt={self.wrt!r} is unknown; accepted are {', '.join(WRT)}")
        if self.wrt == "pooled" and self.conditioning.pooled is None:
            raise ValueError("wrt='pooled' needs a conditioning with a pooled vector (SDXL)")
        if self.scale.shape != (self.rows,) or self.offset.shape != self.latents.shape:
            raise ValueError(
                f"scale {list(self.scale.shape)} and offset {list(self.offset.shape)} must be "
                f"[{self.rows}] and {list(self.latents.shape)}"
            )

    def __iter__(self) -> Generator[NoiseGradient, Any, NoiseLoss]:
        answer: NoiseLoss = yield self
        return answer

    def batch_key(self) -> Hashable:
        return (super().batch_key(), self.wrt, self.scale.dtype, self.offset.dtype)


LatentLoss = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] in [0, 1], differentiable, to one loss per row [B]."""


@dataclass(frozen=True)
class LossGradient(_Query):
    """How does a user's loss on the decoded x0 change with the latents? Answered with `ImageLoss`.
    Eager only.

    The gradient passes through the decoder and the x0 formula; through the UNet as well if asked.
    offset: [B, C, h, w] float32 or None, added to x0 before it is decoded and constant to the
    gradient: what guidance adds.
    """

    loss: LatentLoss
    through_unet: bool = False
    offset: Tensor | None = None

    def __iter__(self) -> Generator[LossGradient, Any, ImageLoss]:
        answer: ImageLoss = yield self
        return answer

    def batch_key(self) -> Hashable:
        return (super().batch_key(), id(self.loss), self.through_unet, self.offset is None)


@dataclass(frozen=True)
class Progress:
    """Not a question: an algorithm says where it is.

    Read by progress bars and put into error notes.
    """

    phase: str  # "invert", "fit", "sample"
    step: int  # steps done
    steps: int

    def __iter__(self) -> Generator[Progress, Any, None]:
        yield self


Query = Denoise | NoiseGradient | LossGradient
Answer = Noise | NoiseLoss | ImageLoss
Algorithm = Generator[Query | Progress, Any, Result]


def every_row(
    latents: Tensor, level: NoiseLevel, timestep: float | None = None
) -> tuple[Tensor, Tensor]:
    """A level as a query wants it: timesteps [B] float32 and alpha_bars [B] float64."""
    asked = level.timestep if timestep is None else timestep
    rows, device = latents.shape[0], latents.device
    return (
        torch.full((rows,), asked, dtype=torch.float32, device=device),
        torch.full((rows,), level.alpha_bar, dtype=torch.float64, device=device),
    )
