"""A model by name, folder, or hub id, ready to run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from pivotal.errors import ModelError
from pivotal.model.autoencoder import Autoencoder
from pivotal.model.families import FAMILIES, Config, Family, family_named, family_of
from pivotal.model.fingerprint import with_parts
from pivotal.model.folder import PICKLES, ModelFolder, open_folder
from pivotal.model.hub import fetch
from pivotal.model.lora import LoraStack
from pivotal.model.lora_file import Lora
from pivotal.model.networks import empty_unet
from pivotal.model.other_autoencoder import other_autoencoder
from pivotal.model.parts import Parts, folder_parts, random_parts
from pivotal.model.single_file import SingleFile, open_single_file
from pivotal.model.single_file_parts import single_file_parts
from pivotal.model.text import TextEncoder
from pivotal.model.textual_inversion import Embedding, teach
from pivotal.model.unet import RoutedUNet
from pivotal.runtime.precision import Precision, precision_of
from pivotal.schedule import PREDICTION_TYPES, NoiseLevels, ScheduleConfig

logger = logging.getLogger(__name__)

BUNDLED = ("shapes",)
_RANDOM = re.compile(r"random:([^:]*)(?::(\d{1,18}))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OLD_SCALING = 0.18215  # of autoencoders whose config does not name theirs
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
    plain_fingerprint: str  # without the LoRAs that it wears
    device: torch.device
    precision: Precision
    loras: LoraStack
    added: tuple[str, ...] = ()  # another autoencoder and new words, by their files' names

    @property
    def additions(self) -> list[str]:
        """What the model has that its name does not say, LoRAs too; no folder is named."""
        worn = [f"lora {each.path.name}:{each.scale:g}" for each in self.loras.worn]
        return [*self.added, *worn]

    @property
    def fingerprint(self) -> str:
        """What it is now, 64 hexadecimal digits; 16 are enough to show."""
        return with_parts(self.plain_fingerprint, self.loras.parts)

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
    own = None if vae is None else _own_autoencoder(Path(vae), found, *place)
    if isinstance(found, SingleFile):
        vocabulary = None if tokenizer is None else Path(tokenizer)
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


def described(
    source: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    family: str | None = None,
    prediction_type: str | None = None,
) -> tuple[Family, Mapping[str, Config]]:
    """A model's family and its config files by component; no weights are read.

    Arguments and errors as `load`'s.
    """
    known = None if family is None else family_named(family)
    _, found = located(source, variant, revision, local_files_only, known, prediction_type)
    return configs_of(found, known)


def configs_of(
    found: ModelFolder | SingleFile | tuple[Family, int], family: Family | None = None
) -> tuple[Family, Mapping[str, Config]]:
    """The family and the configs of what was located."""
    if isinstance(found, SingleFile):
        return found.family, found.configs
    if isinstance(found, ModelFolder):
        return family_of(found.configs["unet"], family), found.configs
    published = found[0].architecture
    assert published is not None
    encoders = zip(("text_encoder", "text_encoder_2"), published.text_encoders, strict=False)
    return found[0], {
        "unet": empty_unet(published.unet).config,
        "vae": published.autoencoder,
        "scheduler": published.scheduler,
        **dict(encoders),
    }


def located(
    source: str | Path,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    family: Family | None = None,
    prediction_type: str | None = None,
) -> tuple[str, ModelFolder | SingleFile | tuple[Family, int]]:
    """The model's name, and its folder, its file, or the family and seed of random weights.

    Arguments and errors as `load`'s; no weights are read.
    """
    name = str(source)
    if name.startswith("random:"):
        named = family if family is None else family.name
        _refuse(
            name, variant=variant, revision=revision, family=named, prediction_type=prediction_type
        )
        return name, _random(name)
    if _URL.match(name):
        raise ValueError(f"{name!r} is a URL, and none is fetched; give a folder or a hub id")
    if name in BUNDLED and not isinstance(source, Path):
        _refuse(name, variant=variant, revision=revision)
        root = Path(str(resources.files("pivotal") / "bundled" / name))
    elif path := _existing(source):
        _refuse(name, revision=revision)
        root = path.absolute()
        name = str(root)  # found again from any folder
        if not root.is_dir():
            _refuse(name, variant=variant)
            _refuse_pickle(root)
            return name, open_single_file(root, family, prediction_type)
    elif isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{name!r} does not exist; give {', '.join(map(repr, BUNDLED))}, 'random:<family>', a "
            "model folder, a single safetensors file, or a hub id like 'owner/name'"
        )
    else:
        root = fetch(name, revision=revision, variant=variant, local_files_only=local_files_only)
    folder = open_folder(root, variant)
    if prediction_type is not None:
        scheduler = {**folder.configs["scheduler"], "prediction_type": prediction_type}
        folder = replace(folder, configs={**folder.configs, "scheduler": scheduler})
    return name, folder


def _own_autoencoder(
    source: Path,
    found: ModelFolder | SingleFile | tuple[Family, int],
    device: torch.device,
    precision: Precision,
) -> tuple[Any, str]:
    """Another autoencoder, scaled as the model's own is where it does not say."""
    if isinstance(found, ModelFolder):
        factor = found.configs["vae"].get("scaling_factor", _OLD_SCALING)
    else:
        published = (found.family if isinstance(found, SingleFile) else found[0]).architecture
        assert published is not None, "only families with one come in a file or at random"
        factor = published.autoencoder["scaling_factor"]
    return other_autoencoder(source.expanduser(), float(factor), device, precision)


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


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise ModelError(
            f"{path} is pickled, which can run code when opened; use a safetensors copy"
        )


def _several(given: Any) -> list[Any]:
    """One, or a sequence of them."""
    return list(given) if isinstance(given, list | tuple) else [given]


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
