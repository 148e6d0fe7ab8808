"""Results as JSON: for `--json`, for an inversion's report, and for what a picture carries."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .inversion_file import Inversion
from .model.load import Model
from .results import Edited, Generated, Reconstruction


def inversion_record(inversion: Inversion, found: Reconstruction) -> dict[str, Any]:
    """The figures of an inversion, for --json and the file's report."""
    report = inversion.report
    seconds = {name: report["seconds"][name] for name in ("load", "encode", "invert")}
    seconds["reconstruct"] = found.seconds["sample"]
    seconds["decode"] = found.seconds["decode"]
    seconds["attribute"] = found.seconds.get("attribute", 0.0)  # telling guidance from inversion
    return {
        "method": inversion.method,
        "steps": inversion.num_inference_steps,
        "guidance_scale": inversion.guidance_scale,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "psnr": finite(found.psnr),
        "vae_psnr": finite(found.vae_psnr),
        "dominant_error": found.dominant_error,
        "noise_std_ratio": report["noise_std_ratio"],
        "model": inversion.model,
        "family": inversion.family,
        "device": report["device"],
        "dtype": report["dtype"],
        "backend": report.get("backend", "torch"),
        "attention": report.get("attention", "auto"),
        "additions": list(report.get("additions", [])),
        "overflows": report.get("overflows", {}),
        "unet_rows": report["unet_rows"],
        "cached": bool(report.get("cached")),
        "prompt": inversion.prompt,
        "negative_prompt": inversion.negative_prompt,
        "options": dict(inversion.options),
        "schedule": dict(inversion.schedule),
    }


def reconstruction_record(inversion: Inversion, found: Reconstruction) -> dict[str, Any]:
    """The figures of a reconstruction, for --json and a picture's metadata."""
    return {
        **_source(inversion),
        "guidance_scale": found.guidance_scale,
        "negative_prompt": found.negative_prompt,
        "seconds": {**found.seconds, "total": sum(found.seconds.values())},
        "psnr": finite(found.psnr),
        "vae_psnr": finite(found.vae_psnr),
        "dominant_error": found.dominant_error,
        "unet_rows": found.unet_rows,
        **found.ran_on,
    }


def edit_record(
    inversion: Inversion, edited: Edited, index: int, outputs: Mapping[str, str]
) -> dict[str, Any]:
    """The figures of one target's edit, for --json and a picture's metadata."""
    edit = edited.edits[index]
    outside = edited.outside_mask_psnr[index]
    touched = edited.touched[index]
    windows = edit.cross_replace_steps
    return {
        **_source(inversion),
        "guidance_scale": edited.source.guidance_scale,
        "negative_prompt": edited.source.negative_prompt,
        "seconds": {**edited.seconds, "total": sum(edited.seconds.values())},
        "touched": {
            "layers": max(reach.layers for reach in touched.values()),
            "steps": max(reach.steps for reach in touched.values()),
            "controls": {name: asdict(reach) for name, reach in touched.items()},
        },
        "edit": {
            "target": edit.target,
            "kind": edited.kinds[index],
            "cross_replace_steps": dict(windows) if isinstance(windows, Mapping) else windows,
            "self_replace_steps": edit.self_replace_steps,
            "null_text_steps": edit.null_text_steps,
            "weights": dict(edit.weights),
            "blend": edit.blend,
            "subtract": edit.subtract,
            "blend_threshold": edit.blend_threshold,
            "subtract_threshold": edit.subtract_threshold,
            "blend_start": edit.blend_start,
            "mask": None if edit.mask is None else _mask_record(edit.mask),
            "mask_words": edit.mask_words,
            "mask_with_blend": edit.mask_with_blend,
            "feather": edit.feather,
            "preserve": edit.preserve,
            "mutual": None if edit.mutual is None else asdict(edit.mutual),
        },
        "psnr": finite(edited.source.psnr),
        "vae_psnr": finite(edited.source.vae_psnr),
        "outside_mask_psnr": None if outside is None else finite(outside),
        "unet_rows": edited.unet_rows,
        **edited.ran_on,
        "outputs": dict(outputs),
    }


def generation_record(
    model: Model, made: Generated, index: int, outputs: Mapping[str, str]
) -> dict[str, Any]:
    """How one picture was made from text, for --json and its metadata."""
    return {
        "prompt": made.prompts[index],
        "negative_prompt": made.negative_prompt,
        "size": list(made.size),
        "seed": None if made.seeds is None else made.seeds[index],
        "steps": len(made.schedule["timesteps"]),
        "guidance_scale": made.guidance_scale,
        **made.sampling,
        "model": model.name,
        "additions": model.additions,
        "family": model.family.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "schedule": dict(made.schedule),
        "seconds": {**made.seconds, "total": sum(made.seconds.values())},
        "unet_rows": made.unet_rows,
        **made.ran_on,
        "outputs": dict(outputs),
    }


def styling_record(
    model: Model, inversion: Inversion, made: Generated, index: int, outputs: Mapping[str, str]
) -> dict[str, Any]:
    """How one picture was made from an inversion's noise, for --json and its metadata."""
    return {
        **generation_record(model, made, index, outputs),
        "source": {
            name: value for name, value in _source(inversion).items() if name not in _OF_THE_MODEL
        },
    }


_OF_THE_MODEL = ("model", "additions", "family")


def embedded(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as a picture carries it with it: nothing in it tells of this machine."""
    private = ("outputs", "seconds", "device")
    kept = {name: value for name, value in record.items() if name not in private}
    if "model" in kept:
        kept["model"] = model_name(str(kept["model"]))
    return {"pivotal": json.dumps({"version": __version__, **kept}, allow_nan=False)}


def mask_of(record: Mapping[str, Any]) -> Tensor:
    """The mask [H, W] bool of an edit's record."""
    height, width = record["size"]
    packed = np.frombuffer(zlib.decompress(base64.b64decode(record["bits"])), np.uint8)
    bits = np.unpackbits(packed, count=height * width).reshape(height, width)
    return torch.from_numpy(bits.astype(bool))


def _mask_record(mask: Tensor) -> dict[str, Any]:
    """A mask [H, W] bool: its size, and its bits row by row, deflated, as base64."""
    packed = np.packbits(mask.cpu().numpy()).tobytes()
    return {
        "size": list(mask.shape),
        "bits": base64.b64encode(zlib.compress(packed)).decode("ascii"),
    }


def model_name(model: str) -> str:
    """A model's name, or the last part of its folder's path: the rest tells of this machine."""
    return re.split(r"[\\/]", model.rstrip("/\\"))[-1]


def decibels(value: float | None) -> str:
    """For people. None is what JSON has for the infinity of identical pictures."""
    return "identical" if value is None or math.isinf(value) else f"{value:.1f} dB"


def finite(value: float) -> float | None:
    """JSON has no infinity: the decibels of identical pictures become null."""
    return value if math.isfinite(value) else None


def _source(inversion: Inversion) -> dict[str, Any]:
    """What was inverted, and how."""
    return {
        "prompt": inversion.prompt,
        "method": inversion.method,
        "options": dict(inversion.options),
        "steps": inversion.num_inference_steps,
        "model": inversion.model,
        "additions": list(inversion.report.get("additions", [])),
        "family": inversion.family,
    }
