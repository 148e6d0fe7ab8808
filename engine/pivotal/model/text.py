"""Prompts to conditioning: tokenise, encode, and (SDXL) add the pooled vector and the time ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.errors import ModelError, NonFiniteError
from pivotal.model.tokenizers import Tokenizer
from pivotal.query import Conditioning
from pivotal.tokens import Tokens

Size = tuple[int, int]


class TextEncoder:
    """CLIP's text tower, or SDXL's two, as diffusers' pipelines use them.

    One encoder: the last hidden states after the final layer norm (SD 1.x, and SD 2.x, whose
    config already leaves the last layer out). Two: the penultimate hidden states of both side by
    side without that norm, and the second's projected pooled vector.

    default_size: pixels (height, width) that time ids name where `encode` is not told another.
    zero_empty: the empty prompt is all zeros (SDXL's `force_zeros_for_empty_prompt`).
    """

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
        first, *others = (tokenizer.tokens(prompt) for tokenizer in self.tokenizers)
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

    def encode(self, prompts: Sequence[str], size: Size | None = None) -> Conditioning:
        """Conditioning of B prompts, float32, on the encoder's device.

        size: pixels (height, width) of the image, for SDXL's time ids; others do not use it.
        Raises ValueError for no prompt or one that is too long; nothing is truncated.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts={prompts!r}; a list with at least one prompt is expected")
        columns = [
            torch.tensor([tokenizer.tokens(p).ids for p in prompts], device=self.device)  # [B, L]
            for tokenizer in self.tokenizers
        ]
        if len(self.encoders) == 1:
            said = self.encoders[0](self._by_chunk(columns[0])).last_hidden_state.float()
            conditioning = Conditioning(said.reshape(len(prompts), self.max_length, -1))
        else:
            conditioning = self._two(prompts, columns, self.default_size if size is None else size)
        for name in ("hidden_states", "pooled"):
            value = getattr(conditioning, name)
            if value is not None and not torch.isfinite(value).all():
                raise NonFiniteError(
                    f"the text encoder's {name} hold NaN or infinity: try float32 or bfloat16"
                )
        return conditioning

    def _by_chunk(self, ids: Tensor) -> Tensor:
        """[B, L] to [B * chunks, L / chunks]."""
        return ids.reshape(-1, self.tokenizers[0].max_length)

    def _two(self, prompts: Sequence[str], ids: Sequence[Tensor], size: Size) -> Conditioning:
        outputs: list[Any] = [
            encoder(self._by_chunk(column), output_hidden_states=True)
            for encoder, column in zip(self.encoders, ids, strict=True)
        ]
        hidden = torch.cat([out.hidden_states[-2].float() for out in outputs], dim=-1)
        hidden = hidden.reshape(len(prompts), self.max_length, -1)  # [B, L, D]
        pooled = outputs[1].text_embeds.float()[:: self.tokenizers[1].chunks]  # [B, P]
        if self.zero_empty:
            keep = torch.tensor([prompt != "" for prompt in prompts], device=hidden.device)
            hidden = torch.where(keep[:, None, None], hidden, 0)
            pooled = torch.where(keep[:, None], pooled, 0)
        # original size, crop from the top left, target size: Podell et al. 2023, arXiv:2307.01952
        sizes = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=hidden.device)
        return Conditioning(hidden, pooled, sizes.repeat(len(prompts), 1))
