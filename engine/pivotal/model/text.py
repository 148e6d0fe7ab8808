"""Prompts to conditioning: tokenise, encode, and (SDXL) add the pooled vector and the time ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.errors import ModelError, NonFiniteError
from pivotal.model.offloading import Visiting
from pivotal.model.tokenizers import Tokenizer
from pivotal.model.weighting import read_weights, token_weights, weighted
from pivotal.query import Conditioning
from pivotal.tokens import Tokens

Size = tuple[int, int]


class TextEncoder:
    """CLIP's text tower, or SDXL's two, as diffusers' pipelines use them.

    One encoder: the last hidden states after the final layer norm (SD 1.x, and SD 2.x, whose
    config already leaves the last layer out). Two: the penultimate hidden states of both side by
    side without that norm, and the second's projected pooled vector.

    default_size: pixels (height, width) that time ids name where `encode` is not told another.
    zero_empty: an empty negative prompt is all zeros (SDXL's `force_zeros_for_empty_prompt`).
    weighted: whether prompts are read by `weighting.read_weights`; pooled vectors are not weighted.
    """

    weighted: bool = False
    visiting: Visiting | None = None

    def __init__(
        self,
        tokenizers: Sequence[Tokenizer],
        encoders: Sequence[nn.Module],
        *,
        default_size: Size,
        zero_empty: bool = False,
    ) -> None:
        if len(tokenizers) != len(encoders) or len(encoders) not in (1, 2):
            raise ValueError(
                f"{len(tokenizers)} tokenizers and {len(encoders)} encoders; one or two of each"
            )
        if len({tokenizer.max_length for tokenizer in tokenizers}) != 1:
            raise ModelError("the two tokenizers have different lengths; they have to agree")
        self.tokenizers = tuple(tokenizers)
        self.encoders = tuple(encoder.eval().requires_grad_(False) for encoder in encoders)
        self.default_size = default_size
        self.zero_empty = zero_empty

    @property
    def max_length(self) -> int:
        """L: tokens with start and end, what every prompt is padded to; of all chunks."""
        return self.tokenizers[0].max_length * self.tokenizers[0].chunks

    def take_long_prompts(self, chunks: int) -> None:
        """From now on every prompt is spread over so many chunks, short ones too, so that all
        conditioning has one length. Each chunk is encoded by itself, with a start and an end of its
        own; hidden states are put one after another, and the pooled vector is the first chunk's (as
        A1111's web UI and diffusers' community pipelines have it). No model is trained on more than
        one. Raises ValueError for fewer than 1.
        """
        if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
            raise ValueError(
                f"long_prompts={chunks!r}; a whole number of chunks from 1 is expected"
            )
        for tokenizer in self.tokenizers:
            tokenizer.chunks = chunks

    @property
    def device(self) -> torch.device:
        return next(self.encoders[0].parameters()).device

    def tokens(self, prompt: str) -> Tokens:
        """The prompt's tokens, to find words by; ids are the first tokenizer's.

        Raises ValueError for a prompt that is too long, and for one that SDXL's two tokenizers
        split differently, so that a word has no one place. (Their padding differs: the second's is
        "!", which it therefore never joins with other characters.)
        """
        first, *others = self._read(prompt)
        for other in others:
            for one, two in zip(first.spans, other.spans, strict=True):
                if one != two:
                    start = min(span[0] for span in (one, two) if span is not None)
                    raise ValueError(
                        f"the model's two tokenizers split the prompt differently from "
                        f"{prompt[start : start + 20]!r} on, so that words can't be told apart; "
                        "rephrase it, for example with fewer '!'"
                    )
        return first

    def _read(self, prompt: str) -> list[Tokens]:
        """By each tokenizer."""
        if not self.weighted:
            return [tokenizer.tokens(prompt) for tokenizer in self.tokenizers]
        text, weights = read_weights(prompt)
        found = [tokenizer.tokens(text) for tokenizer in self.tokenizers]
        return [replace(each, weights=token_weights(each, weights)) for each in found]

    def encode(
        self,
        prompts: Sequence[str],
        size: Size | None = None,
        *,
        time_ids: Sequence[int] | None = None,
        negative: bool = False,
    ) -> Conditioning:
        """Conditioning of B prompts, float32, on the encoder's device.

        size: pixels (height, width) of the image, for SDXL's time ids; others do not use it.
        time_ids: in its place height and width of the original, top and left of the crop, height
        and width of the image; an image that is said by its size is whole.
        negative: guidance leads away from them; with `zero_empty`, empty ones are then all zeros.
        Raises ValueError for no prompt or one that is too long; nothing is truncated.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts={prompts!r}; a list with at least one prompt is expected")
        told = [self._read(prompt) for prompt in prompts]
        with self.visiting.present() if self.visiting else nullcontext():
            if len(self.encoders) == 1:
                hidden, _ = self._by_encoder(0, told)
                conditioning = Conditioning(hidden)
            else:
                height, width = self.default_size if size is None else size
                ids = time_ids or (height, width, 0, 0, height, width)
                conditioning = self._two(told, ids, negative and self.zero_empty)
        for name in ("hidden_states", "pooled"):
            value = getattr(conditioning, name)
            if value is not None and not torch.isfinite(value).all():
                raise NonFiniteError(
                    f"the text encoder's {name} hold NaN or infinity: try float32 or bfloat16"
                )
        return conditioning

    def _by_encoder(self, place: int, told: Sequence[Sequence[Tokens]]) -> tuple[Tensor, Any]:
        """Hidden states [B, L, D] float32 of B prompts, weighted if asked, and all else."""
        tokens = [each[place] for each in told]
        hidden, output = self._plain(place, tokens)
        if any(weight != 1 for each in tokens for weight in each.weights):
            empty, _ = self._plain(place, [self.tokenizers[place].tokens("")])
            ones = (1.0,) * self.max_length
            weights = torch.tensor([each.weights or ones for each in tokens], device=hidden.device)
            hidden = weighted(hidden, empty, weights)
        return hidden, output

    def _plain(self, place: int, tokens: Sequence[Tokens]) -> tuple[Tensor, Any]:
        ids = torch.tensor([each.ids for each in tokens], device=self.device)  # [B, L]
        by_chunk = ids.reshape(-1, self.tokenizers[0].max_length)  # [B * chunks, L / chunks]
        if len(self.encoders) == 1:
            output: Any = self.encoders[place](by_chunk)
            said = output.last_hidden_state
        else:
            output = self.encoders[place](by_chunk, output_hidden_states=True)
            said = output.hidden_states[-2]
        return said.float().reshape(len(tokens), self.max_length, -1), output

    def _two(
        self, told: Sequence[Sequence[Tokens]], time_ids: Sequence[int], zero_empty: bool
    ) -> Conditioning:
        (one, _), (two, output) = (self._by_encoder(place, told) for place in (0, 1))
        hidden = torch.cat([one, two], dim=-1)  # [B, L, D]
        pooled = output.text_embeds.float()[:: self.tokenizers[1].chunks]  # [B, P]
        if zero_empty:
            keep = torch.tensor([first.prompt != "" for first, _ in told], device=hidden.device)
            hidden = torch.where(keep[:, None, None], hidden, 0)
            pooled = torch.where(keep[:, None], pooled, 0)
        # original size, crop from the top left, target size: Podell et al. 2023, arXiv:2307.01952
        sizes = torch.tensor([*time_ids], dtype=torch.float32, device=hidden.device)
        return Conditioning(hidden, pooled, sizes.repeat(len(told), 1))
