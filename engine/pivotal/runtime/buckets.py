"""Any number of rows on a fixed set of batch sizes, so that a fixed set of graphs serves all
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pivotal.attention_routes import AttentionRoutes
from pivotal.driver import Denoiser
from pivotal.editing.routes import WORD_COLUMNS
from pivotal.model.unet import AttentionLayer
from pivotal.query import Answer, Denoise, LossGradient, NoiseGradient, Query


@dataclass(frozen=True)
class Buckets:
    """The batch sizes that graphs are made for, ascending, and the routes' capacity.

    columns: word columns; routes with fewer are padded. invariant: every batch has the one size,
    and rows without routes carry the identity, so that a row's answer does not depend, to the bit,
    on its company (as far as the network's kernels keep rows apart). It costs the largest batch for
    every row.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    columns: int = WORD_COLUMNS
    invariant: bool = False

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in zip(self.sizes, self.sizes[1:], strict=False))
        if not self.sizes or self.sizes[0] < 1 or not ascending:
            raise ValueError(f"sizes={self.sizes}; ascending numbers of rows from 1 are expected")
        if self.columns < 1:
            raise ValueError(f"columns={self.columns}; at least 1 is needed")
        if self.invariant and len(self.sizes) > 1:
            raise ValueError(f"sizes={self.sizes}; an invariant batch has one size")

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    def fit(self, rows: int) -> int:
        """The smallest size that holds so many rows. Raises ValueError over the largest."""
        for size in self.sizes:
            if rows <= size:
                return size
        raise ValueError(f"{rows} rows do not fit into batches of {self.largest}")

    def pack(self, ties: Sequence[Sequence[int]]) -> list[list[int]]:
        """Groups of tied rows into batches of at most the largest size, in order.

        Raises ValueError for a group over it.
        """
        batches: list[list[int]] = []
        for tied in ties:
            if len(tied) > self.largest:
                raise ValueError(
                    f"{len(tied)} rows share attention and need one batch, but the largest bucket "
                    f"holds {self.largest}; edit fewer targets at once or add a bucket"
                )
            if not batches or len(batches[-1]) + len(tied) > self.largest:
                batches.append([])
            batches[-1].extend(tied)
        return batches


class BucketedDenoiser:
    """Gives every query of any size to `inner` in batches of the buckets' sizes, and no others.

    Padding rows repeat the first row and point at themselves. layers: the network's attention, for
    identity routes. eager: answers `LossGradient`, as a user's loss must see no padding; without
    it such queries are not answered.
    """

    def __init__(
        self,
        inner: Denoiser,
        buckets: Buckets,
        layers: Sequence[AttentionLayer],
        *,
        eager: Denoiser | None = None,
    ) -> None:
        self.inner = inner
        self.buckets = buckets
        self.eager = eager
        kinds = [layer.kind for layer in layers]
        self._layers = (kinds.count("self"), kinds.count("cross"))

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def answers(self) -> frozenset[type]:
        own = self.inner.answers - {LossGradient}
        return own if self.eager is None else own | (self.eager.answers & {LossGradient})

    def answer(self, query: Query) -> Answer:
        """Raises ValueError for routes over capacity, and for tied rows over the largest bucket."""
        if isinstance(query, LossGradient):
            if self.eager is None:
                raise TypeError(f"{self.name} answers no LossGradient")
            return self.eager.answer(query)
        asked = self.at_capacity(query)
        if query.rows <= self.buckets.largest:
            answer = self._batch(asked)
        else:
            batches = self.buckets.pack(asked.ties())
            answers = [self._batch(asked.taken(rows)) for rows in batches]
            order = torch.tensor([row for rows in batches for row in rows])
            answer = type(answers[0]).cat(answers).taken(order.argsort().tolist())
        whole: Answer = query.without_company(answer)
        return whole

    def at_capacity(self, query: Denoise | NoiseGradient) -> Denoise | NoiseGradient:
        """The same rows with routes of full capacity; where batches are invariant, with routes."""
        if not isinstance(query, Denoise):
            return query
        routes = query.routes
        if routes is None and self.buckets.invariant:
            length = query.conditioning.hidden_states.shape[1]
            routes = AttentionRoutes.identity(
                query.rows, length, self.buckets.columns, *self._layers
            )
        return (
            query
            if routes is None
            else replace(query, routes=routes.with_columns(self.buckets.columns))
        )

    def _batch(self, query: Denoise | NoiseGradient) -> Any:
        """The inner denoiser's answer to at most the largest bucket's rows."""
        rows, size = query.rows, self.buckets.fit(query.rows)
        if rows == size:
            return self.inner.answer(query)
        return self.inner.answer(padded(query, size)).part(0, rows)


def padded(query: Denoise | NoiseGradient, size: int) -> Denoise | NoiseGradient:
    """The query with its first row repeated, unrouted, up to `size` rows."""
    plain = replace(query, routes=None) if isinstance(query, Denoise) else query
    missing = size - query.rows
    filler = plain.mapped(lambda value: value[:1].expand(missing, *value.shape[1:]))
    return type(query).cat([query, filler])  # type: ignore[list-item]
