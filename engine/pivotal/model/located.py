"""Where a model is, and what its configs say: no weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

from pivotal.errors import ModelError
from pivotal.model.families import (
    FAMILIES,
    Config,
    Family,
    family_named,
    family_of,
    warn_if_few_steps,
)
from pivotal.model.folder import PICKLES, ModelFolder, open_folder
from pivotal.model.hub import fetch
from pivotal.model.networks import empty_unet
from pivotal.model.single_file import SingleFile, open_single_file

Located = ModelFolder | SingleFile | tuple[Family, int]
"""A folder, a file, or the family and seed of random weights."""

BUNDLED = ("shapes",)
_RANDOM = re.compile(r"random:([^:]*)(?::(\d{1,18}))?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"[A-Za-z][\w+.-]*://")


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


def configs_of(found: Located, family: Family | None = None) -> tuple[Family, Mapping[str, Config]]:
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
) -> tuple[str, Located]:
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
    warn_if_few_steps(name, Path(name).name)
    if prediction_type is not None:
        scheduler = {**folder.configs["scheduler"], "prediction_type": prediction_type}
        folder = replace(folder, configs={**folder.configs, "scheduler": scheduler})
    return name, folder


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


def _refuse(name: str, **given: object) -> None:
    """Raise ValueError for arguments that mean nothing for this source."""
    for argument, value in given.items():
        if value is not None:
            raise ValueError(f"{argument}={value!r} means nothing for {name!r}; leave it out")
