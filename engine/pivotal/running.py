"""What every call of an engine runs on: the model and its turns, and a clock."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from numbers import Real
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .cancellation import Cancellation, EitherCancellation
from .driver import Denoiser, Driver, Job, require_rows
from .editing.routes import Layers
from .errors import ModelError, NonFiniteError
from .images import Fitted, Pixels, from_tensor, to_tensor
from .model.load import Model
from .planning import Planner
from .query import Conditioning, Result
from .reservations import Reservations
from .runtime.buckets import Buckets
from .runtime.compiled_denoiser import warm_up
from .runtime.float32_arithmetic import float32_arithmetic
from .runtime.memory_plan import MemoryPlan
from .runtime.out_of_memory import saying
from .runtime.probe import probe_routes
from .serving import Service, Serving
from .turns import Turns
from .worker import Worker

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class Clock:
    """Wall-clock seconds of named laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


class Runner:
    """A model and the denoiser that runs it. Calls from several threads take turns, a UNet batch
    each; beside these one text or picture at a time goes through its encoder or decoder.

    The jobs of submitted calls run together in the service's worker; a direct call's run in the
    thread that calls, where its callbacks, signals and profilers belong.
    """

    def __init__(
        self,
        model: Model,
        denoiser: Denoiser,
        serving: Serving | None = None,
        planner: Planner | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self.model = model
        self.batch_invariant = batch_invariant
        self.denoiser = denoiser
        self.planner = planner or Planner.of(model, None)
        self.layers = Layers(
            tuple(layer.downscale for layer in model.unet.self_layers),
            tuple(layer.downscale for layer in model.unet.cross_layers),
            model.family.self_injection_downscale,
        )
        self.load_seconds = 0.0
        self._turns = Turns()
        self._coding = Turns()
        self._probed = False
        self._starting = Turns()
        self._calls: set[object] = set()  # in progress, in whatever thread
        self._reservations = Reservations()
        settings = serving or Serving()
        self.service = Service(Worker(denoiser, self._turns, settings.shared_rows), settings)

    @property
    def dtype_name(self) -> str:
        """As users name the precision: `float16`, `tf32`."""
        return self.model.precision.name

    @property
    def numerics(self) -> dict[str, Any]:
        """All that decides how results are rounded."""
        chosen = {"tiled_autoencoder": self.model.autoencoder.tiled}
        chosen["batch_invariant"] = self.batch_invariant
        return {**self.model.precision.record(), **{k: v for k, v in chosen.items() if v}}

    @property
    def overflows(self) -> dict[str, int]:
        """UNet rows since the model was loaded that were asked again in float32 as they held NaN or
        infinity, and those of them that did so then too.
        """
        retried, lost = (getattr(self.denoiser, name, 0) for name in ("retried", "lost"))
        return {"retried_rows": retried, "lost_rows": lost}

    def ran_on(self, before: Mapping[str, int]) -> dict[str, Any]:
        """What runs the network, and the `overflows` of all batches since there were `before`."""
        return {
            "backend": self.denoiser.name,
            "attention": self.model.unet.attention,
            "overflows": {name: count - before[name] for name, count in self.overflows.items()},
        }

    def rows_that_fit(
        self,
        plan: Callable[[Planner], MemoryPlan],
        max_rows: int | None = None,
        *,
        tied: int = 1,
    ) -> int | None:
        """max_rows, or fewer where memory is limited; in the batch-invariant mode as few as an edit
        ties together. Raises MemoryLimitError for a job that does not fit, of a submitted call
        also beside what others hold.
        """
        if self.planner.limit is not None:
            fitting = self._reservations.rows(plan(self.planner), self.service.request())
            max_rows = min(fitting, max_rows or sys.maxsize)
        return tied if self.batch_invariant else max_rows

    def checked_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels, the model's default for None.

        Raises ValueError for what the autoencoder can't encode.
        """
        if size is None:
            return self.model.default_size
        step = self.model.autoencoder.scale
        pair = isinstance(size, tuple | list) and len(size) == 2
        if not pair or not all(isinstance(s, int) and s > 0 and s % step == 0 for s in size):
            raise ValueError(f"size={size}; (height, width) in multiples of {step} are possible")
        return size[0], size[1]

    def checked_scale(self, guidance_scale: float | None) -> float:
        """The guidance scale, the family's for None. Raises ValueError for one that is no
        number.
        """
        own = self.model.family.guidance_scale
        scale: Any = own if guidance_scale is None else guidance_scale
        if not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale={scale!r}; a finite number is expected")
        return float(scale)

    def run(
        self,
        jobs: Sequence[Job[Result]],
        cancellation: Cancellation | None = None,
        *,
        max_rows: int | None = None,
    ) -> None:
        """Run jobs together to their ends; each keeps its result or its error.

        max_rows: the most UNet rows in a batch that they are in; None for no limit.
        Raises Cancelled if the end was asked for while waiting for a turn.
        """
        require_rows("max_rows", max_rows)
        request = self.service.request()
        for job in jobs:
            job.cancellation, job.max_rows = self._either(cancellation), max_rows
        if request is not None:
            self._reservations.begin(jobs, request)
            self.service.run(jobs, request)
            return
        driver = Driver(self.denoiser)
        with self._turns.take(cancellation):
            for job in jobs:
                driver.add(job)
        while driver.live:
            with self._turns.take(cancellation):
                driver.turn()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """A call, from its first look at the model to its last: it encodes and samples, maybe more
        than once, and none of that may be of other weights.
        """
        call = object()
        try:
            with self._starting.take():
                self._calls.add(call)
            yield
        finally:
            self._calls.discard(call)

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Let no call begin, and hold all turns. Raises ModelError while a call runs, which what
        is done would change midway.
        """
        with self._starting.take():
            if self._calls or self.service.busy:
                raise ModelError(f"{what} has to wait until no call of this engine runs")
            with self._turns.take(), self._coding.take():
                yield

    def encode(
        self, prompts: Sequence[str], shown: tuple[int, int] | Fitted, *, negative: bool = False
    ) -> Conditioning:
        """Conditioning of B prompts for a picture, or for any of a size, on the model's device.

        negative: guidance leads away from them (`TextEncoder.encode`).
        """
        size, ids = (shown.size, shown.time_ids) if isinstance(shown, Fitted) else (shown, None)
        groups = [[each] for each in prompts] if self.batch_invariant else [prompts]
        with self._alone_coding():
            found = [
                self.model.text.encode(group, size, time_ids=ids, negative=negative)
                for group in groups
            ]
            return Conditioning.cat(found).to(self.model.device)

    def encode_picture(self, pixels: Pixels) -> Tensor:
        """A picture, uint8 [H, W, 3], to latents [1, C, h, w] float32 on the model's device."""
        height, width = pixels.shape[:2]
        what = saying(f"encoding a picture of {height} x {width}")
        with self._alone_coding(), what:
            return self.model.autoencoder.encode(to_tensor(pixels)).to(self.model.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] float32 in [-1, 1] on the CPU.

        One at a time, as the decoder is what takes most memory.
        """
        return torch.cat([self._decode_one(one) for one in latents.split(1)])

    def _decode_one(self, latents: Tensor) -> Tensor:
        what = saying(f"decoding latents of {latents.shape[-2]} x {latents.shape[-1]}")
        with self._alone_coding(), what:
            return self.model.autoencoder.decode(latents.to(self.model.device, torch.float32)).cpu()

    @contextmanager
    def _alone_coding(self) -> Iterator[None]:
        """One text or picture at a time, and its bits never those of what else runs then."""
        exact = float32_arithmetic(tf32=self.model.precision.tf32_beside)
        with self._coding.take(self._either()), torch.no_grad(), exact:
            yield

    def pictures(self, latents: Tensor) -> list[Pixels]:
        """Latents [B, C, h, w] to uint8 [H, W, 3] each."""
        return from_tensor(self.decode(latents))

    def probe_once(
        self, cancellation: Cancellation | None = None, *, size: tuple[int, int], rows: int
    ) -> None:
        """Before the first edit: every attention layer must follow its route.

        size, rows: of the batches to come; a denoiser in buckets is probed in those very graphs.
        """
        if self._probed:
            return
        buckets: Buckets | None = getattr(self.denoiser, "buckets", None)
        most = None
        if buckets is None:
            side = 2 * max(self.layers.self_downscales + self.layers.cross_downscales)
            size = (side * self.model.autoencoder.scale, side * self.model.autoencoder.scale)
        else:
            most = buckets.fit(min(rows, buckets.largest))
        inputs = self._two_rows(size)
        with self._turns.take(self._either(cancellation)):
            if not self._probed:  # another thread may have, meanwhile
                probe_routes(self.denoiser, self.model.unet.layers, *inputs, max_rows=most)
                self._probed = True

    def warm_up(
        self, size: tuple[int, int], rows: Sequence[int], *, gradients: bool
    ) -> dict[str, float]:
        """Ask once for every kind of batch, and probe: the seconds that each took."""
        conditioning, latents = self._two_rows(size)
        with self._turns.take(self._either()):
            seconds = warm_up(
                self.denoiser,
                self.model.unet.layers,
                conditioning,
                latents,
                rows,
                gradients=gradients,
            )
        start = time.perf_counter()
        self.probe_once(size=size, rows=max(rows))
        return {**seconds, "probe": time.perf_counter() - start}

    def _two_rows(self, size: tuple[int, int]) -> tuple[Conditioning, Tensor]:
        """Conditioning of two prompts, and different latents [2, C, h, w]."""
        sides = [side // self.model.autoencoder.scale for side in size]
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, self.model.autoencoder.channels, *sides, generator=generator)
        return self.encode(["a cat", "blue sky"], size), latents.to(self.model.device)

    def _either(self, cancellation: Cancellation | None = None) -> Cancellation | None:
        """The end of a call, or of the submitted one that it is part of."""
        request = self.service.request()
        if request is None or cancellation is None:
            return cancellation if request is None else request.cancellation
        return EitherCancellation(cancellation, request.cancellation)


def as_one_call(
    function: Callable[Concatenate[Runner, Given], Returned],
) -> Callable[Concatenate[Runner, Given], Returned]:
    """The function within its runner's `calling`."""

    @wraps(function)
    def call(runner: Runner, /, *given: Given.args, **named: Given.kwargs) -> Returned:
        with runner.calling():
            return function(runner, *given, **named)

    return call


def require_finite(values: Tensor, what: str) -> None:
    """Raises NonFiniteError."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            f"{what} ended in NaN or infinity; use dtype float32, more steps or a lower guidance"
        )
