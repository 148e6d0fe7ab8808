"""A model folder in diffusers' layout: what is in it, checked, and which weight files to read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pivotal.errors import ModelError

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
NETWORKS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
"""Components with weights, and the classes that pivotal runs."""
OPTIONAL = ("text_encoder_2", "tokenizer_2")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

_FEW_STEPS = ("LCMScheduler", "TCDScheduler")
"""Schedulers of models distilled to few steps."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<before>\w+))?"
    r"(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<after>\w+))?\.safetensors"
)


@dataclass(frozen=True)
class ModelFolder:
    """A folder that has all a model needs. Nothing but JSON has been read yet."""

    root: Path
    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]  # by component, the scheduler's too
    weights: Mapping[str, tuple[Path, ...]]  # by component

    @property
    def tokenizers(self) -> tuple[Path, ...]:
        found = ("tokenizer", *(["tokenizer_2"] if "text_encoder_2" in self.configs else []))
        return tuple(self.root / name for name in found)


def open_folder(root: Path, variant: str | None = None) -> ModelFolder:
    """Check a folder and choose its weight files.

    variant: "fp16" for `*.fp16.safetensors`; None for the plain files, or the only variant there.
    Raises ModelError naming what is missing, damaged, or not safetensors.
    """
    if not (root / INDEX).is_file():
        raise ModelError(
            f"{root} has no {INDEX}, so it is no model folder in diffusers' layout; give the "
            "folder that holds unet/, vae/, text_encoder/, tokenizer/ and scheduler/"
        )
    index = read_json(root / INDEX)
    configs: dict[str, Mapping[str, Any]] = {}
    weights: dict[str, tuple[Path, ...]] = {}
    for component, classes in NETWORKS.items():
        if component in OPTIONAL and not _named(index, component):
            continue
        _check_class(root, index, component, classes)
        configs[component] = read_json(_part(root, component) / "config.json")
        names = [path.name for path in (root / component).iterdir()]
        chosen = choose_weights(names, component, variant, str(root))
        weights[component] = tuple(root / component / name for name in chosen)
    configs["scheduler"] = read_json(_part(root, "scheduler") / "scheduler_config.json")
    if (kind := configs["scheduler"].get("_class_name")) in _FEW_STEPS:
        raise ModelError(
            f"{root} has {kind}, so it is distilled to few steps; pivotal needs the model it was "
            "distilled from (whose scheduler's config belongs here if only that was exchanged)"
        )
    folder = ModelFolder(root, index, configs, weights)
    for tokenizer in folder.tokenizers:
        _part(root, tokenizer.name)
    return folder


def choose_weights(
    names: Iterable[str], component: str, variant: str | None, where: str
) -> tuple[str, ...]:
    """The safetensors files to read among a component's file names, all shards of one variant.

    The variant chosen is logged. Raises ModelError if there are none, or only pickles.
    """
    names = sorted(names)
    found: dict[str | None, dict[int, list[str]]] = {}  # variant -> shards -> files
    for name in names:
        match = _WEIGHTS.fullmatch(name)
        if match:
            shards = int(match["shards"] or 1)
            kind = match["before"] or match["after"]
            found.setdefault(kind, {}).setdefault(shards, []).append(name)
    _refuse_pickles(names, component, where, any_safe=bool(found))
    chosen = variant
    if variant is None and None not in found and len(found) == 1:
        (chosen,) = found
    if chosen not in found:
        offered = ", ".join(sorted("plain" if kind is None else repr(kind) for kind in found))
        raise ModelError(
            f"{component} in {where} has no "
            f"{'plain weights' if chosen is None else f'variant {chosen!r}'}; it has {offered}: "
            "choose with variant="
        )
    shards, files = min(found[chosen].items())
    if len(files) != shards:
        raise ModelError(f"{component} in {where} has {len(files)} of its {shards} weight files")
    logger.info("%s in %s: %s", component, where, ", ".join(files))
    return tuple(files)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file. Raises ModelError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; the model is incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}; an object is expected")
    return value


def _refuse_pickles(names: Iterable[str], component: str, where: str, *, any_safe: bool) -> None:
    if any_safe:
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise ModelError(
            f"{component} in {where} has only pickled weights ({pickles[0]}), which can run code "
            "when opened; convert them to safetensors with a tool you trust, or use a copy that "
            "has them"
        )
    raise ModelError(f"{component} in {where} has no weights (*.safetensors)")


def _named(index: Mapping[str, Any], component: str) -> str | None:
    """The class that the index names for a component, if any."""
    entry = index.get(component)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else None


def _check_class(
    root: Path, index: Mapping[str, Any], component: str, classes: tuple[str, ...]
) -> None:
    found = _named(index, component)
    if found not in classes:
        raise ModelError(
            f"{root / INDEX} ({index.get('_class_name', 'no class')}) names "
            f"{'no' if found is None else found + ' as'} {component}; pivotal runs Stable "
            f"Diffusion 1.x, 2.x and XL, where it is {' or '.join(classes)}"
        )


def _part(root: Path, component: str) -> Path:
    if not (root / component).is_dir():
        raise ModelError(f"{root} has no {component}/ folder; the model is incomplete")
    return root / component
