"""An Inversion, in memory and on disk: everything an edit needs, so that nothing is inverted twice.

On disk it is one safetensors file: tensors, and one JSON document in the header's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import __version__
from .errors import InversionFileError
from .images import Fitted, write_atomically
from .inversion.base import Inverted

SCHEMA = 1
_STORED = "stored."  # prefix of the tensors that the method's replay asked for


@dataclass(frozen=True)
class Inversion:
    """One image, inverted. What `Engine.edit` starts from.

    latents: [1, C, h, w] float32, the encoded image. inverted: one image's. guidance_scale: of the
    replay and so of edits. schedule: the effective one, as recorded. report: figures of the run.
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
    document = {
        "schema": SCHEMA,
        "prompt": inversion.prompt,
        "method": inversion.method,
        "options": dict(inversion.options),
        "guidance_scale": inversion.guidance_scale,
        "num_inference_steps": inversion.num_inference_steps,
        "model": inversion.model,
        "family": inversion.family,
        "fingerprint": inversion.fingerprint,
        "image_digest": inversion.image_digest,
        "schedule": dict(inversion.schedule),
        "report": dict(inversion.report),
        "fit": {
            "policy": picture.policy,
            "source_size": picture.source_size,
            "box": picture.box,
            "inner": picture.inner,
        },
        "versions": {"pivotal": __version__, "torch": torch.__version__},
    }
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), save(contiguous, metadata={"pivotal": json.dumps(document)}))


def read_inversion(path: str | Path) -> Inversion:
    """Raises InversionFileError for a file that is damaged, no inversion, or of a newer schema."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InversionFileError(f"there is no inversion file {str(path)!r}") from None
    except (SafetensorError, OSError) as error:
        raise InversionFileError(
            f"{str(path)!r} can't be read as an inversion: it is damaged, cut short or of another "
            f"kind ({error}); invert the image again"
        ) from None
    if "pivotal" not in header:
        raise InversionFileError(
            f"{str(path)!r} is a safetensors file but no inversion; `pivotal invert` makes one"
        )
    try:
        document = json.loads(header["pivotal"])
        if document["schema"] > SCHEMA:
            raise InversionFileError(
                f"{str(path)!r} has schema {document['schema']}, this version reads up to "
                f"{SCHEMA}; upgrade pivotal"
            )
        return _inversion(document, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InversionFileError(
            f"{str(path)!r} lacks or garbles a part of an inversion ({error}); "
            "invert the image again"
        ) from None


def _inversion(document: dict[str, Any], tensors: dict[str, Tensor]) -> Inversion:
    fit = document["fit"]
    pixels = tensors["picture"].numpy()
    latents, noise = tensors["latents"], tensors["noise"]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"picture of shape {list(pixels.shape)} and type {pixels.dtype}")
    if latents.ndim != 4 or latents.shape != noise.shape or latents.dtype != torch.float32:
        raise ValueError(f"latents {list(latents.shape)}, noise {list(noise.shape)}")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        raise ValueError("a tensor holds NaN or infinity")
    picture = Fitted(
        pixels, fit["policy"], tuple(fit["source_size"]), tuple(fit["box"]), tuple(fit["inner"])
    )
    stored = {
        name.removeprefix(_STORED): tensor
        for name, tensor in tensors.items()
        if name.startswith(_STORED)
    }
    names = (
        "prompt", "method", "options", "guidance_scale", "num_inference_steps", "model", "family",
        "fingerprint", "image_digest", "schedule", "report",
    )  # fmt: skip
    return Inversion(
        picture=picture,
        latents=latents,
        inverted=Inverted(noise, stored),
        **{name: document[name] for name in names},
    )
