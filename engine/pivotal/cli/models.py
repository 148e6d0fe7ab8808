"""`pivotal models list | info | verify`: what can be loaded, what it is, whether it is sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import command, expanded
from .completion import complete_models
from .terminal import Terminal

app = typer.Typer(
    help="What can be loaded, what it is, and whether it is sound; without a command, the list.",
    epilog="Example: `pivotal models`",
    rich_markup_mode="markdown",
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="As --model takes it: a name, a folder, a file or a hub id.",
        autocompletion=complete_models,
    ),
]


@dataclass(frozen=True)
class Reading:
    """How a model's files are read."""

    variant: Annotated[str | None, typer.Option(help="The weights' variant, as `fp16`.")] = None
    revision: Annotated[str | None, typer.Option(help="A hub model's branch, tag or commit.")] = (
        None
    )
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never ask the hub.")
    ] = False
    family: Annotated[
        str | None, typer.Option(help="For unusual widths: `sd1`, `sd2`, `sdxl`.")
    ] = None
    prediction_type: Annotated[
        str | None, typer.Option(help="`epsilon`, `v_prediction`, `sample`.")
    ] = None


def models(terminal: Terminal) -> None:
    """List the models that --model takes."""
    if terminal.context.invoked_subcommand is None:
        _list(terminal)


app.callback(invoke_without_command=True)(expanded(models))


@command(app, "list")
def list_models(terminal: Terminal) -> None:
    """List the models that --model takes: bundled, random, downloaded, and how to name others.

    Example: `pivotal models list`
    """
    _list(terminal)


def _list(terminal: Terminal) -> None:
    from rich.table import Table

    known = [*_bundled(), *_random(), *_downloaded()]
    table = Table("--model", "what it is", "picture", "on disk")
    for each in known:
        size = each["size"]
        table.add_row(
            each["name"],
            each["title"],
            "" if size is None else f"{size[0]}x{size[1]}",
            "" if each["bytes"] is None else f"{each['bytes'] / 1e6:.0f} MB",
        )
    table.add_row("path/to/folder", "a model in diffusers' layout, safetensors", "", "")
    table.add_row("path/to/file.safetensors", "a single-file checkpoint", "", "")
    table.add_row("owner/name", "the same on the Hugging Face hub, fetched when first used", "", "")
    forms = {
        "folder": "a model folder in diffusers' layout, with safetensors",
        "file": "a single safetensors file in the names that Stable Diffusion was trained with",
        "hub": "owner/name of such a model on the Hugging Face hub; --revision, --variant",
        "random": "random:<family>:<seed>, the true architecture with random weights",
    }
    terminal.answer({"models": known, "forms": forms}, table)


@command(app, "info")
def info(name: Name, reading: Reading, terminal: Terminal) -> None:
    """Say what a model is, by its configs and the headers of its weights, of which none is read.

    Example: `pivotal models info shapes`
    """
    from dataclasses import asdict

    from rich.table import Table

    from pivotal.model.families import family_named
    from pivotal.model.folder import ModelFolder
    from pivotal.model.inspection import facts, stored
    from pivotal.model.located import configs_of, located
    from pivotal.model.single_file import SingleFile

    family = None if reading.family is None else family_named(reading.family)
    given = asdict(reading) | {"family": family}
    place, found = located(name, **given)
    files: list[Path] = []
    if isinstance(found, SingleFile):
        files = [found.path]
    elif isinstance(found, ModelFolder):
        files = [path for each in found.weights.values() for path in each]
    weights = stored(files)
    record = {
        "name": place,
        **facts(*configs_of(found, family)),
        "files": [{**asdict(each), "path": str(each.path)} for each in weights],
    }
    table = Table(show_header=False)
    parameters = record.pop("parameters")
    for key, value in record.items():
        if key != "files":
            table.add_row(key.replace("_", " "), str(value))
    for component, count in parameters.items():
        table.add_row(component, f"{count / 1e6:.1f} million parameters")
    for each in weights:
        said = f"{each.tensors} tensors, {', '.join(each.dtypes)}, {each.bytes / 1e6:.0f} MB"
        table.add_row(f"{each.path.parent.name}/{each.path.name}", said)
    terminal.answer({**record, "parameters": parameters}, table)


@command(app, "verify")
def verify(
    name: Name,
    reading: Reading,
    terminal: Terminal,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="CLIP's vocabulary, for a single file.")
    ] = None,
) -> None:
    """Read all of a model: every weight is there, has its shape and is finite, and a prompt and a
    picture pass through all networks.

    Example: `pivotal models verify shapes`
    """
    from dataclasses import asdict

    from rich.table import Table

    from pivotal.model.inspection import require_sound
    from pivotal.model.load import load

    model = load(name, tokenizer=tokenizer, **asdict(reading))
    largest = require_sound(model)
    table = Table("network", "largest weight")
    for network, value in largest.items():
        table.add_row(network, f"{value:.3g}")
    table.caption = f"{model.name} is sound: {model.family.title}, {model.fingerprint[:16]}"
    record = {
        "name": model.name,
        "family": model.family.name,
        "fingerprint": model.fingerprint,
        "sound": True,
        "largest_weight": largest,
    }
    terminal.answer(record, table)


def _bundled() -> list[dict[str, Any]]:
    from importlib import resources

    from pivotal.model.families import FAMILIES

    folder = Path(str(resources.files("pivotal") / "bundled" / "shapes"))
    taken = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    size = list(FAMILIES["shapes"].default_size)
    title = "the bundled model: drawn shapes on plain backgrounds"
    return [{"name": "shapes", "kind": "bundled", "title": title, "size": size, "bytes": taken}]


def _random() -> list[dict[str, Any]]:
    from pivotal.model.families import FAMILIES

    return [
        {
            "name": f"random:{family.name}",
            "kind": "random",
            "title": f"{family.title}'s architecture, random weights",
            "size": list(family.default_size),
            "bytes": None,
        }
        for family in FAMILIES.values()
        if family.architecture is not None
    ]


def _downloaded() -> list[dict[str, Any]]:
    """Models of the hub that are on this machine; the hub is not asked."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        found = scan_cache_dir()
    except (CacheNotFound, OSError):  # nothing was ever downloaded
        return []
    return [
        {
            "name": repository.repo_id,
            "kind": "downloaded",
            "title": "downloaded from the hub",
            "size": None,
            "bytes": repository.size_on_disk,
        }
        for repository in sorted(found.repos, key=lambda each: each.repo_id)
        if repository.repo_type == "model"
        and any(
            file.file_name == "model_index.json"
            for revision in repository.revisions
            for file in revision.files
        )
    ]
