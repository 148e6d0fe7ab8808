"""Textual inversion: new words as learned rows of the token embedding (Gal et al. 2022,
arXiv:2208.01618).

A word may be several vectors: the tokenizer then gives its place so many tokens, and word control
takes them as one word's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.errors import ModelError
from pivotal.model.fingerprint import content_digest
from pivotal.model.tokenizers import ClipTokenizer, Tokenizer
from pivotal.model.weights import tensors_of

logger = logging.getLogger(__name__)

_NAMELESS = ("emb_params", "clip_l", "clip_g")  # of A1111's files and of SDXL's


@dataclass(frozen=True)
class Embedding:
    """Which file, and the word for it in prompts; the file's own if None."""

    path: Path
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token or any(map(str.isspace, self.token))):
            raise ValueError(f"embedding {self.path}: token {self.token!r} is no single word")

    @staticmethod
    def of(told: str | Path | Embedding) -> Embedding:
        """From a path, or `FILE:token`."""
        if isinstance(told, Embedding):
            return told
        place = os.path.expanduser(told)
        path, _, token = place.rpartition(":")
        if not path or "/" in token or "\\" in token or Path(place).exists():
            return Embedding(Path(place))
        return Embedding(Path(path), token)


def teach(embedding: Embedding, tokenizers: Sequence[Tokenizer], encoders: Sequence[Any]) -> str:
    """Add a word to a model's tokenizers and text towers, whose embeddings grow.

    Returns what tells the model from one without it. Raises ModelError for a damaged file and for
    vectors of another width, ValueError for a word that is known already and for a model without a
    vocabulary.
    """
    vectors = _read(embedding.path)
    token = embedding.token or _named(embedding.path, vectors)
    found = [_of_width(embedding.path, vectors, each) for each in encoders]
    for tokenizer, encoder, rows in zip(tokenizers, encoders, found, strict=True):
        if not isinstance(tokenizer, ClipTokenizer):
            raise ValueError(
                f"embedding {embedding.path}: this model has random weights and no vocabulary, so "
                "that it can't be taught a word"
            )
        table = encoder.get_input_embeddings()
        count = len(table.weight)
        tokenizer.teach(token, range(count, count + len(rows)))
        encoder.set_input_embeddings(_grown(table, rows))
        encoder.config.vocab_size = count + len(rows)
        _pool_at(encoder, tokenizer.end)
    logger.info("%s is %r, %d vectors", embedding.path, token, len(found[0]))
    return f"embedding {content_digest(embedding.path)} {token!r}"


def _read(path: Path) -> dict[str, Tensor]:
    """Vectors [n, D] by stored name."""
    found = {}
    for name, tensor in tensors_of(path):
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point():
            raise ModelError(
                f"{path}: {name[:80]} is {tensor.dtype} of shape {list(tensor.shape)[:8]}; vectors "
                "of a textual inversion are expected"
            )
        if not torch.isfinite(vectors).all():
            raise ModelError(f"{path}: {name[:80]} holds NaN or infinity")
        found[name] = vectors
    return found


def _named(path: Path, vectors: Mapping[str, Tensor]) -> str:
    """diffusers' files name the word; otherwise it is the file's name."""
    own = [name for name in vectors if name not in _NAMELESS]
    name = own[0] if len(own) == 1 and len(vectors) == 1 else path.stem
    return Embedding(path, name).token or path.stem


def _of_width(path: Path, vectors: Mapping[str, Tensor], encoder: Any) -> Tensor:
    width = int(encoder.config.hidden_size)
    found = [each for each in vectors.values() if each.shape[1] == width]
    if len(found) != 1:
        widths = sorted(each.shape[1] for each in vectors.values())
        raise ModelError(
            f"{path} holds {len(vectors)} sets of vectors, of widths {widths[:8]}; the model's "
            f"text encoder takes one of width {width}: it was made for another model"
        )
    return found[0]


def _grown(table: nn.Embedding, rows: Tensor) -> nn.Embedding:
    weight = torch.cat([table.weight.detach(), rows.to(table.weight)])
    grown: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=True)
    return grown


def _pool_at(encoder: Any, end: int) -> None:
    """Pool at the end of the prompt: published configs say that it is the largest id, which it no
    longer is.
    """
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = end
    encoder.config.eos_token_id = end
