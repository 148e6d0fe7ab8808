"""A compiled denoiser: the torch one on a compiled network, in buckets, on a GPU as CUDA graphs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import Denoiser, drive
from pivotal.editing.routes import WORD_COLUMNS
from pivotal.model.unet import AttentionLayer, RoutedUNet
from pivotal.query import (
    Algorithm,
    Answer,
    Conditioning,
    Denoise,
    NoiseGradient,
    NoiseLoss,
    Query,
)

from .buckets import BucketedDenoiser
from .compiled_unet import CompiledUNet, CompileOptions
from .cuda_graphs import GraphedDenoiser
from .torch_denoiser import TorchDenoiser

logger = logging.getLogger(__name__)


class CompiledDenoiser(BucketedDenoiser):
    """Answers as the eager denoiser that it is made from, to rounding; `LossGradient` is left to
    that one. Raises BackendError, when first asked, for a network that can't be compiled.

    No graph's gradient is taken on trust, since a compiler's was wrong once (`CompiledGraphs`): one
    row of its first is compared with the eager one's. Where they differ by more than rounding, all
    gradients are left to eager, with a warning.
    """

    def __init__(self, eager: TorchDenoiser, options: CompileOptions) -> None:
        unet = eager.unet
        assert isinstance(unet, RoutedUNet)
        self.options = options
        self.network = CompiledUNet(unet, options)
        inner: Denoiser = TorchDenoiser(
            self.network,
            eager.prediction_type,
            loss_scaling=eager.loss_scaling,
            dtype=eager.dtype,
        )
        if eager.device.type == "cuda" and options.cuda_graphs:
            inner = GraphedDenoiser(inner, eager.device)
        super().__init__(inner, options.buckets, unet.layers, eager=eager)
        self._eager_gradients = False
        self._compared: set[Hashable] = set()  # graphs whose gradients are eager's to rounding
        self._rounding = max(0.01, 32 * torch.finfo(eager.dtype).eps)

    @property
    def name(self) -> str:
        return "compiled"

    def answer(self, query: Query) -> Answer:
        if not isinstance(query, NoiseGradient) or self.eager is None:
            return super().answer(query)
        if self._eager_gradients:
            return self.eager.answer(query)
        answer = super().answer(query)
        graph = (query.batch_key(), self.buckets.fit(min(query.rows, self.buckets.largest)))
        if graph not in self._compared and not self._agrees(graph, query, answer):
            return self.eager.answer(query)
        return answer

    def _agrees(self, graph: Hashable, query: NoiseGradient, answer: Answer) -> bool:
        """Whether a graph's gradient is the eager one's to rounding, by the first row."""
        assert self.eager is not None
        assert isinstance(answer, NoiseLoss)
        expected = self.eager.answer(query.part(0, 1))
        assert isinstance(expected, NoiseLoss)
        size = float(expected.gradient.norm())
        if not 0 < size < math.inf:
            return True  # overflown, or of nothing: the next one tells
        off = float((answer.gradient[:1] - expected.gradient).norm()) / size
        self._eager_gradients = not off <= self._rounding
        if self._eager_gradients:
            logger.warning(
                "compiled gradients are %.2g off the eager network's: gradients stay eager", off
            )
        else:
            self._compared.add(graph)
        return not self._eager_gradients


def warm_up(
    denoiser: Denoiser,
    layers: Sequence[AttentionLayer],
    conditioning: Conditioning,
    latents: Tensor,
    rows: Sequence[int],
    *,
    gradients: bool,
) -> dict[str, float]:
    """Ask once for every kind of batch, the largest first: the seconds that each took.

    conditioning and latents: one row or more, which are repeated up to each of the `rows`.
    gradients: of a null embedding too, as null-text inversion asks, if the denoiser has them.
    """
    seconds: dict[str, float] = {}
    gradients = gradients and NoiseGradient in denoiser.answers
    for count in sorted(set(rows), reverse=True):
        select = torch.arange(count) % latents.shape[0]
        inputs = (latents[select], conditioning.select(select))
        for name, question in _kinds(layers, *inputs, gradients):
            start = time.perf_counter()
            drive(question, denoiser, name="warm-up")
            if latents.device.type == "cuda":
                torch.cuda.synchronize(latents.device)
            seconds[f"{name}, {count} rows"] = time.perf_counter() - start
    return seconds


def _kinds(
    layers: Sequence[AttentionLayer], latents: Tensor, conditioning: Conditioning, gradients: bool
) -> Iterator[tuple[str, Algorithm[Answer]]]:
    rows, length = latents.shape[0], conditioning.hidden_states.shape[1]
    timesteps = torch.full((rows,), 500.0, device=latents.device)
    alpha_bars = torch.full((rows,), 0.5, dtype=torch.float64, device=latents.device)
    asked = (latents, timesteps, alpha_bars, conditioning)
    kinds = [layer.kind for layer in layers]
    routes = AttentionRoutes.identity(
        rows, length, WORD_COLUMNS, kinds.count("self"), kinds.count("cross")
    )
    yield "plain", iter(Denoise(*asked))
    yield "routed", iter(Denoise(*asked, routes))
    if gradients:
        scale = torch.ones_like(timesteps)
        yield "gradient", iter(NoiseGradient(*asked, scale, torch.zeros_like(latents)))
