"""`pivotal models`: what can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .terminal import Terminal


def models(terminal: Terminal) -> None:
    """List the models that --model takes: bundled, random, downloaded, and how to name others.

    Example: `pivotal models`
    """
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
    table.add_row("owner/name", "the same on the Hugging Face hub, fetched when first used", "", "")
    forms = {
        "folder": "a model folder in diffusers' layout, with safetensors",
        "hub": "owner/name of such a model on the Hugging Face hub; --revision, --variant",
        "random": "random:<family>:<seed>, the true architecture with random weights",
    }
    terminal.answer({"models": known, "forms": forms}, table)


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
