"""A small byte-level BPE vocabulary in CLIP's own file format, learnt from captions."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer

from pivotal.bench.shapes.captions import caption
from pivotal.bench.shapes.scenes import sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MAX_TOKENS = 77
MERGES = 220
LONGEST = 7  # letters a token: turquoise, triangle and background take two tokens

Pair = tuple[str, str]


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte, in CLIP's (GPT-2's) order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + place) for place in range(len(others))]


def count_words(captions: list[str]) -> Counter[str]:
    """How often each word, number or run of punctuation occurs (captions are ASCII)."""
    words: Counter[str] = Counter()
    for text in captions:
        words.update(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    return words


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """Byte-pair encoding (Sennrich et al. 2015): join the most frequent pair, over and over."""
    spelled = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for word, symbols in spelled.items():
            for pair in pairwise(symbols):
                if len("".join(pair).removesuffix(WORD_END)) <= LONGEST:
                    pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = {word: _joined(symbols, best) for word, symbols in spelled.items()}
    return merges


def _joined(symbols: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def write_tokenizer(folder: Path, seed: int = 0, scenes: int = 20_000) -> CLIPTokenizer:
    """Learn the vocabulary, write vocab.json and merges.txt, and load them as transformers does."""
    rng = np.random.default_rng(seed)
    captions = [caption(sample_scene(rng), rng) for _ in range(scenes)]
    merges = learn_merges(count_words(captions), MERGES)
    symbols = byte_symbols()
    tokens = symbols + [symbol + WORD_END for symbol in symbols]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
