"""`AttentionRoutes`: a Prompt-to-Prompt edit as a fixed-capacity bundle of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionRoutes:
    """Where each row of a UNet batch takes its attention from, layer by layer.

    With `A_d`, `A_r` the softmax of the donor and the row itself, cross-attention computes `A_d
    (mix V_r) + A_r (keep * V_r)`; self-attention computes `attn(Q[queries], K[keys], V[values])`. A
    row without an edit carries the identity: it is its own donor, `mix` 0 and `keep` 1.

    B rows, L tokens, K word columns, S self-attention and X cross-attention layers, in the order
    the UNet runs them.
    """

    self_queries: Tensor  # [S, B] int64, row indices
    self_keys: Tensor  # [S, B] int64
    self_values: Tensor  # [S, B] int64
    donors: Tensor  # [B] int64, whose cross-attention is borrowed
    cross_gate: Tensor  # [X, B] float32, 1 where mix and keep act, 0 where the layer is left alone
    mix: Tensor  # [B, L, L] float32, donor tokens to the row's tokens
    keep: Tensor  # [B, L] float32
    words: Tensor  # [B, L, K] float32, columns whose attention is returned as word maps

    def __post_init__(self) -> None:
        rows, length = self.keep.shape
        shapes = {
            "self_queries": (self.self_queries.shape[0], rows),
            "self_keys": (self.self_queries.shape[0], rows),
            "self_values": (self.self_queries.shape[0], rows),
            "donors": (rows,),
            "cross_gate": (self.cross_gate.shape[0], rows),
            "mix": (rows, length, length),
            "words": (rows, length, self.words.shape[-1]),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"AttentionRoutes.{name} has shape {list(getattr(self, name).shape)}; "
                    f"{list(shape)} is expected for {rows} rows of {length} tokens"
                )

    @property
    def rows(self) -> int:
        return self.keep.shape[0]

    @property
    def columns(self) -> int:
        """Word columns, K."""
        return self.words.shape[-1]

    def to(self, device: torch.device | str) -> AttentionRoutes:
        return self.mapped(lambda value: value.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> AttentionRoutes:
        """The same with every tensor replaced by its change."""
        return AttentionRoutes(**{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def of_layers(self, self_index: int, cross_index: int) -> AttentionRoutes:
        """The routes of one self-attention and one cross-attention layer alone."""
        own = slice(self_index, self_index + 1)
        return replace(
            self,
            self_queries=self.self_queries[own],
            self_keys=self.self_keys[own],
            self_values=self.self_values[own],
            cross_gate=self.cross_gate[cross_index : cross_index + 1],
        )

    def with_columns(self, columns: int) -> AttentionRoutes:
        """The same routes with zero word columns appended up to `columns`."""
        missing = columns - self.columns
        if missing < 0:
            raise ValueError(f"{self.columns} word columns do not fit into {columns}")
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts["words"] = torch.nn.functional.pad(self.words, (0, missing))
        return AttentionRoutes(**parts)

    def select(self, rows: Tensor) -> AttentionRoutes:
        """The routes of some rows, their indices made local. The rows must hold all their donors.

        rows: [R] int64. Raises ValueError if a selected row's donor is not selected.
        """
        place = torch.full((self.rows,), -1, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        local = {}
        for name in ("self_queries", "self_keys", "self_values", "donors"):
            local[name] = place[getattr(self, name)[..., rows]]
            if (local[name] < 0).any():
                raise ValueError("rows tied by donors can't be selected apart from their donors")
        return AttentionRoutes(
            **local,
            cross_gate=self.cross_gate[:, rows],
            mix=self.mix[rows],
            keep=self.keep[rows],
            words=self.words[rows],
        )

    def ties(self) -> list[list[int]]:
        """Groups of rows that borrow from each other (connected components), in row order."""
        group = list(range(self.rows))

        def root(row: int) -> int:
            while group[row] != row:
                row = group[row]
            return row

        indices = torch.cat(
            [self.self_queries, self.self_keys, self.self_values, self.donors[None]]
        )
        for line in indices.tolist():
            for row, donor in enumerate(line):
                first, second = sorted((root(row), root(donor)))
                group[second] = first
        members: dict[int, list[int]] = {}
        for row in range(self.rows):
            members.setdefault(root(row), []).append(row)
        return list(members.values())

    @staticmethod
    def identity(
        rows: int, length: int, columns: int, self_layers: int, cross_layers: int
    ) -> AttentionRoutes:
        """Routes that change nothing: every row its own donor."""
        own = torch.arange(rows)
        return AttentionRoutes(
            self_queries=own.repeat(self_layers, 1),
            self_keys=own.repeat(self_layers, 1),
            self_values=own.repeat(self_layers, 1),
            donors=own,
            cross_gate=torch.zeros(cross_layers, rows),
            mix=torch.zeros(rows, length, length),
            keep=torch.ones(rows, length),
            words=torch.zeros(rows, length, columns),
        )

    def identity_like(self, rows: int) -> AttentionRoutes:
        """Identity routes of the same capacity for `rows` rows."""
        made = AttentionRoutes.identity(
            rows,
            self.keep.shape[1],
            self.columns,
            self.self_queries.shape[0],
            self.cross_gate.shape[0],
        )
        return made.to(self.keep.device)

    @staticmethod
    def cat(parts: Sequence[AttentionRoutes]) -> AttentionRoutes:
        """Routes of several batches laid one after another; indices rebased, columns padded."""
        columns = max(part.columns for part in parts)
        padded = [part.with_columns(columns) for part in parts]
        starts = [0]
        for part in padded:
            starts.append(starts[-1] + part.rows)

        def rebased(name: str) -> Tensor:
            return torch.cat(
                [getattr(p, name) + start for p, start in zip(padded, starts, strict=False)], -1
            )

        return AttentionRoutes(
            self_queries=rebased("self_queries"),
            self_keys=rebased("self_keys"),
            self_values=rebased("self_values"),
            donors=rebased("donors"),
            cross_gate=torch.cat([p.cross_gate for p in padded], dim=-1),
            mix=torch.cat([p.mix for p in padded]),
            keep=torch.cat([p.keep for p in padded]),
            words=torch.cat([p.words for p in padded]),
        )
