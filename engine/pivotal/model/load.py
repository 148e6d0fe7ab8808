"""A model by name, folder, or hub id, ready to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pivotal.errors import ModelError
from pivotal.model.autoencoder import Autoencoder
from pivotal.model.families import Family, family_named
from pivotal.model.fingerprint import with_parts
from pivotal.model.folder import ModelFolder
from pivotal.model.located import Located, configs_of, located
from pivotal.model.lora import LoraStack
from pivotal.model.lora_file import Lora
from pivotal.model.other_autoencoder import other_autoencoder
from pivotal.model.parts import Parts, folder_parts, random_parts
from pivotal.model.single_file import SingleFile
from pivotal.model.single_file_parts import single_file_parts
from pivotal.model.text import TextEncoder
from pivotal.model.textual_inversion import Embedding, teach
from pivotal.model.unet import RoutedUNet
from pivotal.runtime.precision import Precision, precision_of
from pivotal.schedule import PREDICTION_TYPES, NoiseLevels, ScheduleConfig

logger = logging.getLogger(__name__)

_OLD_SCALING = 0.18215  # of autoencoders whose config does not name theirs


@dataclass(frozen=True)
class Model:
    """All that inverting and editing need of a checkpoint. Networks are frozen and in eval mode."""

    name: str  # the source it was loaded from
    family: Family
    unet: RoutedUNet
    levels: NoiseLevels
    text: TextEncoder
    autoencoder: Autoencoder
    plain_fingerprint: str  # without the LoRAs that it wears
    device: torch.device
    precision: Precision
    loras: LoraStack
    added: tuple[str, ...] = ()  # another autoencoder and new words, by their files' names

    @property
    def additions(self) -> list[str]:
        """What the model has that its name does not say, LoRAs too, and how it reads prompts; no
        folder is named.
        """
        worn = [f"lora {each.path.name}:{each.scale:g}" for each in self.loras.worn]
        return [*self.added, *worn, *self._reading]

    @property
    def fingerprint(self) -> str:
        """What it is now, 64 hexadecimal digits; 16 are enough to show."""
        return with_parts(self.plain_fingerprint, (*self.loras.parts, *self._reading))

    @property
    def _reading(self) -> tuple[str, ...]:
        chunks = self.text.tokenizers[0].chunks
        spread = () if chunks == 1 else (f"prompts in {chunks} chunks",)
        return (*spread, "weighted prompts") if self.text.weighted else spread

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's and the text encoders'."""
        return self.precision.networks

    @property
    def default_size(self) -> tuple[int, int]:
        """The pixels (height, width) that this checkpoint was trained for."""
        return self.text.default_size


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | Precision = "float32",
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    family: str | Family | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    vae: str | Path | None = None,
    lora: str | Path | Lora | Sequence[str | Path | Lora] = (),
    embedding: str | Path | Embedding | Sequence[str | Path | Embedding] = (),
) -> Model:
    """Load a model.

    source: "shapes" (bundled), "random:<family>[:<seed>]" (the true architecture with random
    weights), a folder in diffusers' layout, a single safetensors file in the names that Stable
    Diffusion was trained with, or a hub id "owner/name". Safetensors only.
    dtype: of the UNet and the text encoders, where the autoencoder runs in float32; "tf32" or
    "fp8", on a GPU that has it; or a `Precision` that says all.
    variant: which weight files, such as "fp16". revision: of a hub model.
    family: for a model that no family is recognised by; a `Family` of one's own is accepted.
    prediction_type: "epsilon", "v_prediction" or "sample", where the model's files are wrong or,
    as many single files, silent. tokenizer: a folder with CLIP's vocabulary, for a single file;
    open_clip_torch's if None.
    vae: another autoencoder, a folder or a safetensors file. lora: files, each with `:0.8` after it
    for so much of it. embedding: textual inversions, each with `:word` after it for another word.

    Raises ValueError for a wrong argument, ModelError for a model that can't be had or run.
    """
    place = (device_of(device), precision_of(dtype))
    place[1].require_device(place[0])
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(
            f"prediction_type={prediction_type!r} is unknown; accepted are "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    loras = [Lora.of(each) for each in _several(lora)]
    embeddings = [Embedding.of(each) for each in _several(embedding)]
    known = family_named(family) if isinstance(family, str) else family
    name, found = located(source, variant, revision, local_files_only, known, prediction_type)
    if tokenizer is not None and not isinstance(found, SingleFile):
        raise ValueError(f"tokenizer={str(tokenizer)!r} means nothing for {name!r}; leave it out")
    own = None if vae is None else _own_autoencoder(Path(os.path.expanduser(vae)), found, *place)
    if isinstance(found, SingleFile):
        vocabulary = None if tokenizer is None else Path(os.path.expanduser(tokenizer))
        parts = single_file_parts(found, vocabulary, own and own[0], *place)
    elif isinstance(found, ModelFolder):
        parts = folder_parts(found, known, *place)
    else:
        parts = random_parts(*found, *place)
    added = [] if own is None else [own[1]]
    added += [teach(each, parts.tokenizers, parts.text_encoders) for each in embeddings]
    parts = replace(
        parts,
        autoencoder=parts.autoencoder if own is None else own[0],
        fingerprint=with_parts(parts.fingerprint, added),
    )
    named = [] if vae is None else [f"vae {Path(vae).name}"]
    named += [f"embedding {each.path.name}" for each in embeddings]
    model = replace(_model(name, parts, *place), added=tuple(named))
    model.loras.wear(loras)
    return model


def _own_autoencoder(
    source: Path,
    found: Located,
    device: torch.device,
    precision: Precision,
) -> tuple[Any, str]:
    """Another autoencoder, scaled as the model's own is where it does not say.

    Raises ModelError for one whose latents are of another kind.
    """
    configs = configs_of(found)[1] if isinstance(found, tuple) else found.configs
    config = configs.get("vae")
    if config is None:  # of a file without one
        assert isinstance(found, SingleFile)
        assert found.family.architecture is not None
        config = found.family.architecture.autoencoder
    factor = float(config.get("scaling_factor", _OLD_SCALING))
    made, told = other_autoencoder(source, factor, device, precision)
    own, known = _latents_of(made.config), _latents_of(config)
    if "vae" in configs and own != known:
        raise ModelError(
            f"{source} can't stand in for the model's autoencoder: it has {own[0]} latent channels "
            f"and {own[1]} pixels a latent, where the model has {known[0]} and {known[1]}"
        )
    return made, told


def _latents_of(autoencoder: Mapping[str, Any]) -> tuple[int, int]:
    """Channels, and pixels along a side, of its config."""
    levels = len(autoencoder.get("block_out_channels", (64,)))  # diffusers' default
    return int(autoencoder.get("latent_channels", 4)), 2 ** (levels - 1)


def _model(name: str, parts: Parts, device: torch.device, precision: Precision) -> Model:
    family, autoencoder = parts.family, Autoencoder(parts.autoencoder)
    size = default_size(parts.unet.config.sample_size, autoencoder.scale, family)
    text = TextEncoder(
        parts.tokenizers, parts.text_encoders, default_size=size, zero_empty=parts.zero_empty
    )
    try:
        levels = NoiseLevels(ScheduleConfig.from_diffusers(parts.scheduler))
        unet = RoutedUNet(parts.unet, word_map_downscale=family.word_map_downscale)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{name} is of a kind that pivotal can't run: {error}") from error
    unet.eval().requires_grad_(False)
    logger.info("loaded %s: %s, %s on %s", name, family.title, precision.name, device)
    stack = LoraStack(parts.unet, parts.text_encoders)
    return Model(
        name, family, unet, levels, text, autoencoder, parts.fingerprint, device, precision, stack
    )


def default_size(latents: object, scale: int, family: Family) -> tuple[int, int]:
    """Pixels, from the latents' size that the UNet's config names: a side, both, or none."""
    if isinstance(latents, int):
        return latents * scale, latents * scale
    if isinstance(latents, list | tuple) and len(latents) == 2:
        return latents[0] * scale, latents[1] * scale
    return family.default_size


def _several(given: Any) -> list[Any]:
    """One, or a sequence of them."""
    return list(given) if isinstance(given, list | tuple) else [given]


def device_of(device: str | torch.device) -> torch.device:
    """A device that is here. Raises ValueError for what is none, absent or of another kind."""
    try:
        made = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is unknown; give 'cpu', 'cuda' or 'cuda:0'") from error
    if made.type == "cuda":
        count = torch.cuda.device_count()
        if (made.index or 0) >= count:
            raise ValueError(f"device={str(device)!r} is absent: {count} CUDA devices are usable")
    elif made.type != "cpu":
        raise ValueError(f"device={str(device)!r} is not supported; give 'cpu' or 'cuda'")
    return made
