"""What a model is, as 64 hexadecimal digits: inversions name it, and refuse another.

The dtype that weights are cast to at load does not count; the files do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pivotal.errors import ModelError
from pivotal.model.folder import ModelFolder
from pivotal.model.random_weights import VERSION
from pivotal.model.safetensors_header import read_header

DISPLAYED = 16
"""Digits that are enough to show."""

_SAMPLE = 4096  # bytes at the start, middle and end of each tensor
_VOCABULARIES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
_VOLATILE = (
    "_diffusers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
"""Config keys that say who wrote it, not what the network is."""


def folder_fingerprint(folder: ModelFolder) -> str:
    """SHA-256 over configs, vocabularies, and the weight files: names, sizes, headers, and the
    start, middle and end of every tensor (a few megabytes of a 7 GB model).

    Raises ModelError for a weight file that is damaged.
    """
    digest = hashlib.sha256()
    zeroed = bool(folder.index.get("force_zeros_for_empty_prompt"))
    _add(digest, "force_zeros_for_empty_prompt", str(zeroed).encode())
    for component in sorted(folder.configs):
        _add(digest, f"{component}/config", _canonical(folder.configs[component]))
    try:
        for tokenizer in folder.tokenizers:
            for name in _VOCABULARIES:
                if (tokenizer / name).is_file():
                    _add(digest, f"{tokenizer.name}/{name}", (tokenizer / name).read_bytes())
        for component in sorted(folder.weights):
            for path in sorted(folder.weights[component]):
                _add_file(digest, f"{component}/{path.name}", path)
    except OSError as error:
        raise ModelError(f"{folder.root} can't be read: {error}") from error
    return digest.hexdigest()


def file_fingerprint(
    path: Path, configs: Mapping[str, Mapping[str, Any]], vocabularies: Iterable[Mapping[str, int]]
) -> str:
    """As `folder_fingerprint`, of a single file: its configs, vocabularies and weights."""
    digest = hashlib.sha256()
    for component in sorted(configs):
        _add(digest, f"{component}/config", _canonical(configs[component]))
    for vocabulary in vocabularies:
        _add(digest, "vocabulary", json.dumps(vocabulary, sort_keys=True).encode())
    try:
        _add_file(digest, "file", path)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error}") from error
    return digest.hexdigest()


def with_parts(fingerprint: str, parts: Iterable[str]) -> str:
    """A model's fingerprint with what was added to it, each part said by its own; none changes
    nothing.
    """
    said = list(parts)
    return (
        hashlib.sha256("\n".join([fingerprint, *said]).encode()).hexdigest()
        if said
        else fingerprint
    )


def content_digest(path: Path) -> str:
    """SHA-256 of all of a file: for those that are small. Raises ModelError if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}") from error


def random_fingerprint(family: str, seed: int) -> str:
    """SHA-256 of what random weights are made from."""
    return hashlib.sha256(f"random:{family}:{seed}:{VERSION}".encode()).hexdigest()


def _add_file(digest: Any, name: str, path: Path) -> None:
    _add(digest, name, str(path.stat().st_size).encode())
    for number, part in enumerate(_samples(path)):
        _add(digest, str(number), part)


def _samples(path: Path) -> Iterable[bytes]:
    header = read_header(path)
    raw = header.raw
    yield raw
    with path.open("rb") as file:
        for start, end in sorted((each.start, each.end) for each in header.tensors.values()):
            last = max(start, end - _SAMPLE)
            for at in sorted({start, (start + last) // 2, last}):
                file.seek(8 + len(raw) + at)
                yield file.read(min(_SAMPLE, end - at))


def _canonical(config: Mapping[str, Any]) -> bytes:
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    return json.dumps(kept, sort_keys=True).encode()


def _add(digest: Any, name: str, content: bytes) -> None:
    """Length before content, so that no two lists of parts look the same."""
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
