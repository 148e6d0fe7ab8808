"""A denoiser on networks outside PyTorch: it answers `Denoise`, nothing that needs gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import Denoiser
from pivotal.errors import BackendError
from pivotal.query import Answer, Denoise, Noise, Query
from pivotal.runtime.buckets import Buckets
from pivotal.runtime.exported.network import Network
from pivotal.runtime.exported.parts import ROUTES
from pivotal.runtime.exported.record import ExportRecord
from pivotal.sampling.steps import eps_and_x0


class ExportedDenoiser:
    """The contract of `TorchDenoiser` for `Denoise`: per-row timesteps, routes, word maps.

    routed, plain: the UNet with routes and without. scale: pixels per latent. Thread-safe as far
    as the networks are, and they are.
    """

    def __init__(
        self,
        name: str,
        routed: Network,
        plain: Network,
        record: ExportRecord,
        *,
        scale: int,
    ) -> None:
        self.name = name
        self.record = record
        self._routed = routed
        self._plain = plain
        self._scale = scale

    @property
    def answers(self) -> frozenset[type]:
        return frozenset({Denoise})

    def answer(self, query: Query) -> Answer:
        """Raises ValueError for a batch outside the export's profile or over its routes' capacity,
        BackendError for a query with gradients.
        """
        if not isinstance(query, Denoise):
            raise BackendError(
                f"the {self.name} backend can't answer {type(query).__name__}; use torch for it"
            )
        height, width = (side * self._scale for side in query.latents.shape[-2:])
        self.record.profile.require(
            query.rows,
            height,
            width,
            lambda wider: replace(self.record, profile=wider).again(),
        )
        inputs = self._inputs(query)
        if query.routes is None:
            (prediction,) = self._plain(inputs)
            word_maps = None
        else:
            routes = self._at_capacity(query.routes)
            inputs |= {name: getattr(routes, name) for name in ROUTES}
            prediction, word_maps = self._routed(inputs)
            word_maps = word_maps.to(query.latents.device, torch.float32)
            word_maps = word_maps[:, : query.routes.columns]
        eps, x0 = eps_and_x0(
            prediction.to(query.latents.device),
            query.latents,
            query.alpha_bars,
            self.record.prediction_type,  # type: ignore[arg-type]  # checked when it was exported
        )
        return Noise(eps, x0, word_maps)

    def _inputs(self, query: Denoise) -> dict[str, Tensor]:
        given = query.conditioning
        length = self.record.capacity.length
        if given.hidden_states.shape[1] != length:
            raise ValueError(
                f"prompts of {given.hidden_states.shape[1]} tokens; the export takes {length}"
            )
        inputs = {
            "latents": query.latents,
            "timesteps": query.timesteps,
            "hidden_states": given.hidden_states,
        }
        if given.pooled is not None and given.time_ids is not None:
            inputs |= {"pooled": given.pooled, "time_ids": given.time_ids}
        return inputs

    def _at_capacity(self, routes: AttentionRoutes) -> AttentionRoutes:
        columns = self.record.capacity.columns
        if routes.columns > columns:
            raise ValueError(
                f"{routes.columns} word columns; the export holds {columns}: edit fewer targets "
                "at once"
            )
        return routes.with_columns(columns)


class HybridDenoiser:
    """Two backends as one: `Denoise` goes to `fast`, what that can't answer to `torch_`.

    Which is settled by the query's type when a job is planned, not by what fails while it runs.
    """

    def __init__(self, fast: Denoiser, torch_: Denoiser) -> None:
        self.fast = fast
        self.torch_ = torch_
        self.name = f"{fast.name}+{torch_.name}"

    @property
    def answers(self) -> frozenset[type]:
        return self.fast.answers | self.torch_.answers

    @property
    def buckets(self) -> Buckets | None:
        """Those of the fast one, for probes."""
        return getattr(self.fast, "buckets", None)

    def answer(self, query: Query) -> Answer:
        """Raises what the chosen backend does."""
        chosen = self.fast if type(query) in self.fast.answers else self.torch_
        return chosen.answer(query)
