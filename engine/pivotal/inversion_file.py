"""An Inversion, in memory and on disk: everything an edit needs, so that nothing is inverted twice.

On disk it is one safetensors file: tensors, and one JSON document in the header's metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from . import __version__
from .errors import InversionFileError, MissingInversionError, UnreadableInversionError
from .images import Fitted, write_atomically
from .inversion.base import Inverted
from .inversion_document import SCHEMA, check_document, fitted

__all__ = ["SCHEMA", "Inversion", "read_document", "read_inversion", "write_inversion"]

_MAX_HEADER = 100_000_000  # bytes, as safetensors itself has it
_STORED = "stored."  # prefix of the tensors that the method's replay asked for
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
_NAMES = (
    "prompt", "method", "options", "guidance_scale", "num_inference_steps", "model", "family",
    "fingerprint", "image_digest", "schedule", "report", "negative_prompt",
)  # fmt: skip


@dataclass(frozen=True)
class Inversion:
    """One image, inverted. What `Engine.edit` starts from.

    latents: [1, C, h, w] float32, the encoded image. inverted: one image's. guidance_scale: of the
    replay and so of edits. schedule: the effective one, as recorded. report: figures of the run.
    negative_prompt: in the empty prompt's place.
    """

    picture: Fitted
    prompt: str
    method: str
    options: Mapping[str, Any]
    guidance_scale: float
    num_inference_steps: int
    latents: Tensor
    inverted: Inverted
    model: str
    family: str
    fingerprint: str
    image_digest: str
    schedule: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    negative_prompt: str = ""

    def with_report(self, report: Mapping[str, Any]) -> Inversion:
        return replace(self, report={**self.report, **report})


def write_inversion(inversion: Inversion, path: str | Path) -> None:
    """Write atomically: the file is whole or not there.

    Raises OutputError if it can't be written.
    """
    picture = inversion.picture
    tensors = {
        "picture": torch.from_numpy(np.array(picture.pixels)),
        "latents": inversion.latents,
        "noise": inversion.inverted.noise,
        **{_STORED + name: tensor for name, tensor in inversion.inverted.stored.items()},
    }
    # Copies, as safetensors refuses tensors that share memory (a method may store the latents).
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    document = {
        "schema": SCHEMA,
        **{name: getattr(inversion, name) for name in _NAMES},
        "fit": {
            "policy": picture.policy,
            "source_size": picture.source_size,
            "box": picture.box,
            "inner": picture.inner,
        },
        "versions": {
            "pivotal": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
    }
    document["checksum"] = _checksum(document, tensors)
    write_atomically(Path(path), save(tensors, metadata={"pivotal": json.dumps(document)}))


def read_inversion(path: str | Path) -> Inversion:
    """Raises InversionFileError for a file that is damaged, no inversion, or of a newer schema.

    From schema 2 on, any changed bit of the tensors or the document is damage. Nothing that is
    returned depends on the file any more: it is read, not mapped, as a mapped file that is cut
    afterwards would end the process.
    """
    document, tensors = _read(path, with_tensors=True)
    try:
        if document["schema"] >= 2 and document.get("checksum") != _checksum(document, tensors):
            raise ValueError("its checksum is of other content")
        return _inversion(document, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # torch's are RuntimeErrors
        raise _garbled(path, error) from None


def read_document(path: str | Path) -> dict[str, Any]:
    """What an inversion file says of itself, without its tensors; raises as `read_inversion`."""
    return _read(path, with_tensors=False)[0]


def _read(path: str | Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited on for ever
            raise InversionFileError(f"the inversion file {str(path)!r} is not a file")
        with Path(path).open("rb") as file:
            document = _document(file, path)
            file.seek(0)
            return document, load(file.read()) if with_tensors else {}
    except FileNotFoundError:
        raise MissingInversionError(f"the inversion file {str(path)!r} does not exist") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableInversionError(
            f"the inversion file {str(path)!r} can't be read: {reason}"
        ) from error
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InversionFileError(
            f"{str(path)!r} can't be read as an inversion: it is damaged, cut short or of another "
            f"kind ({reason}); invert the image again"
        ) from None


def _document(file: BinaryIO, path: str | Path) -> dict[str, Any]:
    """The checked document in an open file. Raises ValueError for what is no safetensors file."""
    metadata = _metadata(file)
    if "pivotal" not in metadata:
        raise InversionFileError(
            f"{str(path)!r} is a safetensors file but no inversion; `pivotal invert` makes one"
        )
    try:
        document = json.loads(metadata["pivotal"])
        schema = document["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise InversionFileError(
                f"{str(path)!r} has schema {schema}, this version reads up to {SCHEMA}; "
                "upgrade pivotal"
            )
        check_document(document)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _garbled(path, error) from None
    return dict(document)


def _metadata(file: BinaryIO) -> Mapping[str, Any]:
    """The metadata in a safetensors header. Raises ValueError where the file is not as long as the
    header says.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("its header is cut")
    try:
        entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError):
        raise ValueError("its header is no safetensors header") from None
    if end != size - 8 - length or not isinstance(metadata, dict):
        raise ValueError("its length is not what its header says")
    return metadata


def _garbled(path: str | Path, error: Exception) -> InversionFileError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
    return InversionFileError(
        f"{str(path)!r} lacks or garbles a part of an inversion ({reason}); invert the image again"
    )


def _inversion(document: dict[str, Any], tensors: dict[str, Tensor]) -> Inversion:
    latents, noise = tensors["latents"], tensors["noise"]
    if latents.ndim != 4 or latents.shape != noise.shape or latents.shape[0] != 1:
        raise ValueError(f"latents {list(latents.shape)}, noise {list(noise.shape)}")
    if latents.dtype != torch.float32 or noise.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"latents of {latents.dtype}, noise of {noise.dtype}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity")
        if name.startswith(_STORED) and (tensor.dtype not in _DTYPES or tensor.shape[:1] != (1,)):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    stored = {
        name.removeprefix(_STORED): tensor
        for name, tensor in tensors.items()
        if name.startswith(_STORED)
    }
    return Inversion(
        picture=fitted(document["fit"], tensors["picture"]),
        latents=latents,
        inverted=Inverted(noise, stored),
        **{name: document[name] for name in _NAMES if name in document},
    )


def _checksum(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the document, less its checksum, and over every tensor; hexadecimal."""
    said = {name: value for name, value in document.items() if name != "checksum"}
    said = json.loads(json.dumps(said))  # as it is read: tuples are lists, all keys are text
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
