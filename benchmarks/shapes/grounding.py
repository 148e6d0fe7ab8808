"""Ties words to places while the UNet trains: an object's words must attend to the object.

A network this small learns to use its prompt as a bag of words: its cross-attention stays uniform
(measured: every token 1/77 everywhere), and Prompt-to-Prompt has no maps to work with. Drawn scenes
come with exact masks, so attention is taught where the words are, as in TokenCompose
(Wang et al. 2023, arXiv:2312.03626), eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import CLIPTokenizer

from pivotal.bench.shapes.captions import GROUND_WORDS, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS
from pivotal.bench.shapes.scenes import Scene, mask_of

REGIONS = 3  # two objects at most, and the background


class WatchedAttention:
    """Cross-attention by explicit maps, kept as [B, N, L], averaged over heads."""

    def __init__(self) -> None:
        self.maps: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key)
        self.maps = probabilities.unflatten(0, (-1, attn.heads)).mean(dim=1)
        mixed = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


def watch(unet: UNet2DConditionModel) -> list[WatchedAttention]:
    """Watch the cross-attention of the down and up blocks (16 x 16 and 8 x 8)."""
    watched: list[WatchedAttention] = []
    processors = {}
    for name in unet.attn_processors:
        if ".attn2." in name and not name.startswith("mid_block"):
            watched.append(WatchedAttention())
            processors[name] = watched[-1]
        else:
            processors[name] = AttnProcessor2_0()
    unet.set_attn_processor(processors)
    return watched


def regions_of(
    tokenizer: CLIPTokenizer, scenes: Sequence[Scene], prompts: Sequence[str], length: int
) -> tuple[Tensor, Tensor]:
    """Which tokens speak of which region: tokens [B, R, L], and regions [B, R, 16, 16], float32.

    Words of one object alone are its own; the regions of tokens that are not there are empty.
    """
    tokens = np.zeros((len(prompts), REGIONS, length), dtype=np.float32)
    places = np.zeros((len(prompts), REGIONS, 16, 16), dtype=np.float32)
    for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        words = _words_of(scene)
        masks = [_coarse(mask_of(thing)) for thing in scene.objects]
        places[row, : len(masks)] = masks
        places[row, REGIONS - 1] = 1 - np.max(masks, axis=0)
        position = 1
        for word in prompt.split():
            count = _token_count(tokenizer, word)
            for region, own in words.items():
                if word in own:
                    tokens[row, region, position : position + count] = 1
            position += count
    return torch.from_numpy(tokens), torch.from_numpy(places)


def grounding_loss(watched: Sequence[WatchedAttention], tokens: Tensor, places: Tensor) -> Tensor:
    """How much of each word's attention falls outside its region, squared, float32 [B].

    The mean over layers and words of (1 - share of the word's map inside its region)^2.
    """
    total = torch.zeros(tokens.shape[0])
    named = tokens.sum(dim=(1, 2)).clamp(min=1.0)
    for each in watched:
        assert each.maps is not None
        side = round(each.maps.shape[1] ** 0.5)
        region = avg_pool2d(places, 16 // side).flatten(2)  # [B, R, N]
        share = each.maps / each.maps.sum(dim=1, keepdim=True)  # [B, N, L]
        inside = torch.einsum("brn,bnl->brl", region, share)
        total = total + ((1 - inside).square() * tokens).sum(dim=(1, 2)) / named
        each.maps = None
    return total / len(watched)


def _words_of(scene: Scene) -> dict[int, set[str]]:
    own = [
        {thing.colour, *_split(SHAPE_WORDS[thing.shape]), *_split(SIZE_WORDS[thing.size])}
        for thing in scene.objects
    ]
    shared = own[0] & own[1] if len(own) == 2 else set()
    words = {region: names - shared for region, names in enumerate(own)}
    ground = scene.background
    words[REGIONS - 1] = {ground.colour, *GROUND_WORDS, *TEXTURE_WORDS[ground.texture]}
    return words


def _split(names: Sequence[str]) -> list[str]:
    return [word for name in names for word in name.split()]


def _coarse(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Latent places that an object covers by a quarter or more, float32 [16, 16]."""
    share = mask.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    covered: NDArray[np.float32] = (share >= 0.25).astype(np.float32)
    return covered


@lru_cache(maxsize=4096)
def _token_count(tokenizer: CLIPTokenizer, word: str) -> int:
    return len(tokenizer(word, add_special_tokens=False).input_ids)
