"""The UNet through `torch.compile`: without a graph break, one graph for each kind of batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pivotal.attention_routes import AttentionRoutes
from pivotal.model.unet import RoutedUNet, run_by_blocks

from .buckets import Buckets
from .compile_cache import default_compile_folder
from .compiled_graphs import CompiledGraphs, require_cpp_compiler

Prediction = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class CompileOptions:
    """How the network is compiled.

    buckets: the batch sizes that graphs are made for. regional: compile each kind of block once
    instead of the whole network, which starts sooner and runs slower. cuda_graphs: on a GPU, replay
    captured graphs. cache: a folder that keeps what was compiled, so that the next process starts
    sooner; torch runs code from it, so nobody else should be able to write there (None: torch's own
    folder). backend: as `torch.compile` takes it.
    """

    buckets: Buckets = field(default_factory=Buckets)
    regional: bool = False
    cuda_graphs: bool = True
    cache: Path | None = None
    backend: str = "inductor"

    def __post_init__(self) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if self.backend not in known:
            raise ValueError(
                f"backend={self.backend!r} is unknown; accepted are {', '.join(known)}"
            )


def compile_options(
    given: bool | CompileOptions, attention: str = "auto", backend: str = "torch"
) -> CompileOptions | None:
    """What `compile=` means: True is the defaults with pivotal's own cache, False is None: eager.

    Raises ValueError where a backend that runs no torch network is to be compiled, or to use an
    attention that was named.
    """
    if "torch" not in backend and (given or attention != "auto"):
        what = f"compile={given!r}" if given else f"attention={attention!r}"
        raise ValueError(f"{what} means nothing for backend {backend}; leave it out")
    if isinstance(given, CompileOptions):
        return given
    return CompileOptions(cache=default_compile_folder()) if given else None


class CompiledUNet(nn.Module):
    """As `RoutedUNet`, compiled. Its weights are those of the given network.

    Without routes and with routes are two graphs for each shape, and there is one more where a
    gradient is wanted. Nothing of an edit but tensors reaches a graph, so no edit makes another.
    On a GPU convolutions' weights and the latents are laid out channels last. Raises BackendError
    on a CPU without a C++ compiler.
    """

    def __init__(self, unet: RoutedUNet, options: CompileOptions) -> None:
        super().__init__()
        if options.backend == "inductor" and next(unet.parameters()).device.type == "cpu":
            require_cpp_compiler()
        self.graphs = CompiledGraphs(options.backend, options.cache)
        self._layout = torch.contiguous_format
        if next(unet.parameters()).device.type == "cuda":
            self._layout = torch.channels_last
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unet = run_by_blocks(unet, self.graphs.run) if options.regional else unet
        whole = partial(self.graphs.run, _unet, "", self.unet)
        self._run: Callable[..., Prediction] = self.unet if options.regional else whole

    def forward(
        self,
        latents: Tensor,  # [B, C, h, w], the network's dtype
        timesteps: Tensor,  # [B] float32
        hidden_states: Tensor,  # [B, L, D]
        pooled: Tensor | None = None,  # [B, P]
        time_ids: Tensor | None = None,  # [B, 6]
        routes: AttentionRoutes | None = None,
    ) -> Prediction:
        """As `RoutedUNet.forward`. Raises BackendError where the network can't be compiled."""
        inputs = (latents, timesteps, hidden_states, pooled, time_ids)
        wanted = any(each is not None and each.requires_grad for each in inputs)
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            return self._run(
                latents.clone(memory_format=self._layout),
                *(None if each is None else _canonical(each) for each in inputs[1:]),
                None if routes is None else routes.mapped(_canonical),
            )


def _unet(
    unet: RoutedUNet,
    latents: Tensor,
    timesteps: Tensor,
    hidden_states: Tensor,
    pooled: Tensor | None,
    time_ids: Tensor | None,
    routes: AttentionRoutes | None,
) -> Prediction:
    prediction: Prediction = unet(latents, timesteps, hidden_states, pooled, time_ids, routes)
    return prediction


def _canonical(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, laid out in order.

    Graphs are guarded by strides, also those of sides of 1, and by which inputs are one tensor.
    """
    return tensor.clone(memory_format=torch.contiguous_format)
