"""A model by name, folder, or hub id, ready to run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from pivotal.errors import ModelError
from pivotal.model.autoencoder import Autoencoder
from pivotal.model.families import FAMILIES, Config, Family, family_named, family_of
from pivotal.model.folder import PICKLES, ModelFolder, open_folder
from pivotal.model.hub import fetch
from pivotal.model.networks import empty_unet
from pivotal.model.parts import Parts, folder_parts, random_parts
from pivotal.model.text import TextEncoder
from pivotal.model.unet import RoutedUNet
from pivotal.runtime.precision import Precision, precision_of
from pivotal.schedule import NoiseLevels, ScheduleConfig

logger = logging.getLogger(__name__)

BUNDLED = ("shapes",)
_RANDOM = re.compile(r"random:([^:]*)(?::(\d{1,18}))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"[A-Za-z][\w+.-]*://")


@dataclass(frozen=True)
class Model:
    """All that inverting and editing need of a checkpoint. Networks are frozen and in eval mode."""

    name: str  # the source it was loaded from
    family: Family
    unet: RoutedUNet
    levels: NoiseLevels
    text: TextEncoder
    autoencoder: Autoencoder
    fingerprint: str  # 64 hexadecimal digits; 16 are enough to show
    device: torch.device
    precision: Precision

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
) -> Model:
    """Load a model.

    source: "shapes" (bundled), "random:<family>[:<seed>]" (the true architecture with random
    weights), a folder in diffusers' layout, or a hub id "owner/name". Safetensors only.
    dtype: of the UNet and the text encoders, where the autoencoder runs in float32; "tf32" or
    "fp8", on a GPU that has it; or a `Precision` that says all.
    variant: which weight files, such as "fp16". revision: of a hub model.
    family: for a model that no family is recognised by; a `Family` of one's own is accepted.

    Raises ValueError for a wrong argument, ModelError for a model that can't be had or run.
    """
    place = (device_of(device), precision_of(dtype))
    place[1].require_device(place[0])
    known = family_named(family) if isinstance(family, str) else family
    name, found = _located(source, variant, revision, local_files_only, known)
    if isinstance(found, ModelFolder):
        return _model(name, folder_parts(found, known, *place), *place)
    return _model(name, random_parts(*found, *place), *place)


def described(
    source: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> tuple[Family, Mapping[str, Config]]:
    """A model's family and its config files by component; no weights are read.

    Arguments and errors as `load`'s.
    """
    _, found = _located(source, variant, revision, local_files_only, None)
    if isinstance(found, ModelFolder):
        return family_of(found.configs["unet"]), found.configs
    family, _ = found
    published = family.architecture
    assert published is not None
    encoders = zip(("text_encoder", "text_encoder_2"), published.text_encoders, strict=False)
    return family, {
        "unet": empty_unet(published.unet).config,
        "vae": published.autoencoder,
        "scheduler": published.scheduler,
        **dict(encoders),
    }


def _located(
    source: str | Path,
    variant: str | None,
    revision: str | None,
    local_files_only: bool,
    family: Family | None,
) -> tuple[str, ModelFolder | tuple[Family, int]]:
    """The model's name, and its folder, or the family and seed of random weights."""
    name = str(source)
    if name.startswith("random:"):
        named = family if family is None else family.name
        _refuse(name, variant=variant, revision=revision, family=named)
        return name, _random(name)
    if _URL.match(name):
        raise ValueError(f"{name!r} is a URL, and none is fetched; give a folder or a hub id")
    if name in BUNDLED and not isinstance(source, Path):
        _refuse(name, variant=variant, revision=revision)
        root = Path(str(resources.files("pivotal") / "bundled" / name))
    elif path := _existing(source):
        _refuse(name, revision=revision)
        root = _checked(path).absolute()
        name = str(root)  # found again from any folder
    elif isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{name!r} does not exist; give {', '.join(map(repr, BUNDLED))}, 'random:<family>', a "
            "model folder, or a hub id like 'owner/name'"
        )
    else:
        root = fetch(name, revision=revision, variant=variant, local_files_only=local_files_only)
    return name, open_folder(root, variant)


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
    return Model(
        name, family, unet, levels, text, autoencoder, parts.fingerprint, device, precision
    )


def default_size(latents: object, scale: int, family: Family) -> tuple[int, int]:
    """Pixels, from the latents' size that the UNet's config names: a side, both, or none."""
    if isinstance(latents, int):
        return latents * scale, latents * scale
    if isinstance(latents, list | tuple) and len(latents) == 2:
        return latents[0] * scale, latents[1] * scale
    return family.default_size


def _random(name: str) -> tuple[Family, int]:
    match = _RANDOM.fullmatch(name)
    known = [key for key, family in FAMILIES.items() if family.architecture is not None]
    if match is None or match[1] not in known:
        raise ValueError(
            f"{name!r} is unknown; accepted are {', '.join(f'random:{key}' for key in known)}, "
            "each with a seed if wanted, as in random:sd1:7"
        )
    return FAMILIES[match[1]], int(match[2] or 0)


def _existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if str(source) and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        return None


def _checked(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.suffix in PICKLES:
        raise ModelError(
            f"{path} is pickled, which can run code when opened; use a safetensors copy in a "
            "folder in diffusers' layout"
        )
    raise ModelError(
        f"{path} is a single file; give the model as a folder in diffusers' layout "
        "(diffusers' from_single_file and save_pretrained make one)"
    )


def _refuse(name: str, **given: object) -> None:
    """Raise ValueError for arguments that mean nothing for this source."""
    for argument, value in given.items():
        if value is not None:
            raise ValueError(f"{argument}={value!r} means nothing for {name!r}; leave it out")


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
