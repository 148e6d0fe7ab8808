"""Another autoencoder in place of a model's own: a folder in diffusers' layout, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pivotal.errors import ModelError
from pivotal.model.fingerprint import file_fingerprint
from pivotal.model.folder import PICKLES, choose_weights, read_json
from pivotal.model.networks import empty_autoencoder
from pivotal.model.single_file_parts import autoencoder_of_file
from pivotal.model.weights import fill
from pivotal.runtime.precision import Precision


def other_autoencoder(
    source: Path, scaling_factor: float, device: torch.device, precision: Precision
) -> tuple[Any, str]:
    """An AutoencoderKL, and what tells a model with it from others.

    source: a folder with config.json and weights, a model's folder, or a safetensors file.
    scaling_factor: the model's, for a file, which holds none. Raises ModelError for what is none of
    these or damaged.
    """
    if source.is_file():
        if source.suffix in PICKLES:
            raise ModelError(
                f"{source} is pickled, which can run code when opened; use a safetensors copy"
            )
        network = autoencoder_of_file(source, scaling_factor, device, precision)
        unseen = {"vae": {"scaling_factor": scaling_factor}}  # the rest shows in the file
        return network, f"vae {file_fingerprint(source, unseen, ())}"
    folder = next(
        (each for each in (source / "vae", source) if (each / "config.json").is_file()), None
    )
    if folder is None:
        raise ModelError(
            f"{source} is no autoencoder; give a safetensors file, or a folder with config.json"
        )
    config = read_json(folder / "config.json")
    names = choose_weights([path.name for path in folder.iterdir()], "vae", None, str(folder))
    network = empty_autoencoder(config)
    files = [folder / name for name in names]
    fill(network, files, "vae", device=device, dtype=precision.autoencoder)
    digests = [file_fingerprint(path, {"vae": config}, ()) for path in files]
    return network, " ".join(["vae", *digests])
