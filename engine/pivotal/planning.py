"""What each kind of job asks of memory: inversions, edits, pictures from text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Literal

import torch

from .driver import drive
from .inversion.registry import Method
from .model.load import Model
from .model.lora import LoraStack
from .query import Answer, Conditioning, Denoise, LossGradient, Noise, NoiseGradient, NoiseLoss
from .query import Query as AnyQuery
from .runtime.memory_count import Peak
from .runtime.memory_plan import TEXT_ENCODERS, MemoryPlan, NetworkMemory, Shape, device_limit
from .schedule import Schedule

_FLOAT32 = 4  # bytes; what is kept between steps is float32

# A rehearsal's sizes. Methods look at noise in patches of eight.
_SIDE, _LENGTH, _WIDTH = 16, 4, 8


@dataclass(frozen=True)
class Planner:
    """Plans jobs on one model. limit: the bytes that a job may use, weights included.

    loras: those that it wears, whose originals are kept beside the weights.
    """

    networks: NetworkMemory
    limit: int | None = None
    loras: LoraStack | None = None
    _rehearsals: dict[Any, Mapping[Any, int]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        model: Model, limit: int | Literal["auto"] | None, *, gradient_checkpointing: bool = False
    ) -> Planner:
        """limit: in bytes; "auto" is what a CUDA device has free, and none on a CPU.

        Raises ValueError for a limit that is no positive number of bytes.
        """
        if limit == "auto":
            limit = device_limit(model.device)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"memory_limit={limit!r}; bytes, 'auto' or None are possible")
        configs = {"unet": model.unet.unet.config, "vae": model.autoencoder.vae.config}
        for name, encoder in zip(TEXT_ENCODERS, model.text.encoders, strict=False):
            config: Any = encoder.config
            configs[name] = config.to_dict()
        networks = NetworkMemory(
            configs,
            model.family,
            model.precision,
            gradient_checkpointing=gradient_checkpointing,
            tiled_autoencoder=model.autoencoder.tiled,
            offloaded=model.autoencoder.visiting is not None,
            chunks=model.text.tokenizers[0].chunks,
        )
        return Planner(networks, limit, model.loras)

    def job(
        self,
        method: Method | None,
        options: Any,
        schedule: Schedule,
        size: tuple[int, int],
        *,
        images: int = 1,
        targets: int = 0,
    ) -> MemoryPlan:
        """An inversion by `method`, or without one an edit to so many targets, or pictures made
        from text. Raises ValueError for what is none of these.
        """
        for name, count, least in (("images", images, 1), ("targets", targets, 0)):
            if count < least:
                raise ValueError(f"{name}={count}; at least {least} are possible")
        if method is not None and targets:
            raise ValueError(f"targets={targets} beside a method; plan an edit with method=None")
        if method is not None:
            return self.inversion(method, options, schedule, size, images=images)
        if not targets:
            return self.sampling(f"generating {_pictures(images, size)}", size, rows=images)
        if images != 1:
            raise ValueError(f"images={images}; one inversion is edited at a time")
        what = f"editing {_pictures(1, size)} to {targets} target{'s' * (targets != 1)}"
        return self.sampling(what, size, rows=1 + targets, least=2)

    def inversion(
        self,
        method: Method,
        options: Any,
        schedule: Schedule,
        size: tuple[int, int],
        *,
        images: int = 1,
    ) -> MemoryPlan:
        """Of so many images at once, of (height, width) pixels."""
        shape = self._latents(size)
        known = (method.name, options, schedule)
        if known not in self._rehearsals:
            pooled = self.networks.family.time_ids
            self._rehearsals[known] = rehearsed(method, options, schedule, pooled=pooled)
        asked = dict(self._rehearsals[known])
        if NoiseGradient in method.needed(options) and set(asked) == {None}:
            asked["latents"] = asked[None]  # the stand-in was too easy for it to need a gradient
        batch = reduce(or_, (self._batch(kind, shape) for kind in asked))
        return self._plan(
            f"inverting {_pictures(images, size)} by {method.name}",
            size,
            batch=batch,
            rows=images * max(asked.values()),
            least=1,
            state=images * self._kept(method, schedule.steps, shape),
        )

    def sampling(
        self, what: str, size: tuple[int, int], *, rows: int, least: int = 1, guided: bool = True
    ) -> MemoryPlan:
        """Of edits and of pictures from text: so many rows, twice that under guidance.

        least: rows tied by an edit, which one batch must hold.
        """
        shape = self._latents(size)
        return self._plan(
            what,
            size,
            batch=self.networks.denoise(shape),
            rows=rows * (2 if guided else 1),
            least=least,
            state=4 * rows * _elements(shape) * _FLOAT32,  # latents, both predictions, their sum
        )

    def _plan(self, job: str, size: tuple[int, int], **figures: Any) -> MemoryPlan:
        autoencoder, text = self.networks.visiting()
        return MemoryPlan(
            job=f"{job} in {self.networks.precision.name}",
            weights=self.networks.weights() + (0 if self.loras is None else self.loras.bytes),
            autoencoder=max(autoencoder + self.networks.autoencode(size), text),
            limit=self.limit,
            **figures,
        )

    def _latents(self, size: tuple[int, int]) -> Shape:
        scale = self.networks.scale
        return self.networks.channels, size[0] // scale, size[1] // scale

    def _batch(self, kind: Any, shape: Shape) -> Peak:
        return self.networks.denoise(shape) if kind is None else self.networks.gradient(shape, kind)

    def _kept(self, method: Method, steps: int, latents: Shape) -> int:
        """Of one image: what its inversion stores, the trajectory, and an optimiser's moments."""
        length, width = self.networks.embedding
        sizes = {
            "steps": steps,
            "levels": steps + 1,
            "latents": _elements(latents),
            "length": length,
            "width": width,
        }
        elements = (steps + 1) * _elements(latents) + 3 * length * width
        for dimensions in method.stored.values():
            product = 1
            for name in dimensions:
                product *= sizes[name]
            elements += product
        return elements * _FLOAT32


def rehearsed(
    method: Method, options: Any, schedule: Schedule, *, pooled: bool = False
) -> Mapping[Any, int]:
    """The most rows that a method asks at once for one image, by what is differentiated.

    None stands for a forward pass. The method is run, on a stand-in for a network. pooled: whether
    that takes a pooled vector.
    """
    stand_in = _StandIn({})
    vector = torch.ones(1, _WIDTH) if pooled else None
    conditioning = Conditioning(torch.ones(1, _LENGTH, _WIDTH), vector)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, _SIDE, _SIDE, generator=generator)
    null = Conditioning(torch.zeros(1, _LENGTH, _WIDTH), vector)
    drive(method.invert(schedule, latents, conditioning, null, options), stand_in)
    return stand_in.asked


@dataclass(frozen=True)
class _StandIn:
    """The best denoiser of noise of unit variance, in closed form; it notes how much is asked."""

    asked: dict[Any, int]
    name: str = "rehearsal"
    answers: frozenset[type] = frozenset({Denoise, NoiseGradient})

    def answer(self, query: AnyQuery) -> Answer:
        assert not isinstance(query, LossGradient)
        kind = query.wrt if isinstance(query, NoiseGradient) else None
        self.asked[kind] = max(self.asked.get(kind, 0), query.rows)
        alpha_bars = query.alpha_bars.to(query.latents)[:, None, None, None]
        eps = (1 - alpha_bars).sqrt() * query.latents
        if kind is None:
            return Noise(eps, alpha_bars.sqrt() * query.latents)
        wide = query.latents if kind == "latents" else getattr(query.conditioning, kind)
        return NoiseLoss(eps, query.latents.new_ones(query.rows), 1e-3 * torch.ones_like(wide))


def _elements(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _pictures(count: int, size: tuple[int, int]) -> str:
    many = "an image" if count == 1 else f"{count} images"
    return f"{many} of {size[0]} x {size[1]}"
