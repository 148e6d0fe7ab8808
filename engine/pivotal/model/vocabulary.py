"""CLIP's vocabulary, which single-file checkpoints lack: from a library's wheel that carries it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pivotal.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
_CARRIER, _FILE = "open_clip", "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # those that CLIP was trained with; the file has more


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE: ids by token, and merges, each two tokens with a space between."""

    ids: dict[str, int]
    merges: tuple[str, ...]


def carried_file() -> Path | None:
    """The merges of CLIP's vocabulary in open_clip_torch, if it is installed; none of it is run."""
    spec = find_spec(_CARRIER)
    places = () if spec is None else spec.submodule_search_locations or ()
    return next((path for each in places if (path := Path(each) / _FILE).is_file()), None)


def clip_vocabulary() -> Vocabulary:
    """The vocabulary that all CLIP text towers of Stable Diffusion share: 49408 tokens.

    As Radford et al. 2021 built it (arXiv:2103.00020): 256 bytes, the same ending a word, a token
    for each merge, start and end. Raises ModelError where no library carries it.
    """
    path = carried_file()
    if path is None:
        raise ModelError(
            "a single-file checkpoint has no vocabulary; say tokenizer= and a folder with "
            "vocab.json and merges.txt (that of any Stable Diffusion model), or "
            "`pip install --no-deps open_clip_torch`, which carries it"
        )
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, UnicodeError) as error:
        raise ModelError(f"{path} can't be read: {error}") from error
    return built(lines[1 : 1 + _MERGES])


def built(merges: list[str]) -> Vocabulary:
    """The vocabulary that merges define. Raises ModelError for a line that is no merge."""
    if not all(len(merge.split()) == 2 for merge in merges):
        raise ModelError("the vocabulary has a line that is no merge of two tokens")
    letters = list(_byte_letters())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [START, END]
    return Vocabulary({token: index for index, token in enumerate(tokens)}, tuple(merges))


def _byte_letters() -> list[str]:
    """A printable letter for each byte, GPT-2's: those that print first, then the others."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return [*map(chr, printing), *(chr(256 + index) for index in range(len(others)))]
