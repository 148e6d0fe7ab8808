"""`pivotal cache ls | gc | clear`: the inversions that are kept, so that none is made twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from .command import command
from .options import MaxSize
from .terminal import Terminal
from .values import parse_bytes

if TYPE_CHECKING:
    from pivotal.cache import InversionCache, Removed

app = typer.Typer(
    help="The inversions that are kept, so that none is made twice.",
    epilog="Example: `pivotal cache ls`. The folder is PIVOTAL_CACHE, or pivotal/inversions in the "
    "user's cache.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@command(app, "ls")
def list_entries(terminal: Terminal) -> None:
    """List the kept inversions, the last used first.

    Example: `pivotal cache ls`
    """
    from rich.table import Table

    cache = _open()
    entries = cache.list()
    taken = sum(entry.bytes for entry in entries)
    table = Table("key", "last used", "size", "method", "model", "prompt")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        method = f"{entry.method}, {entry.num_inference_steps} steps"
        table.add_row(
            entry.key[:12], used, f"{entry.bytes / 1e6:.1f} MB", method, entry.model, entry.prompt
        )
    table.caption = f"{len(entries)} inversions, {taken / 1e6:.1f} MB in {cache.folder}"
    record = {
        "folder": str(cache.folder),
        "bytes": taken,
        "max_bytes": cache.max_bytes,
        "entries": [entry.record() for entry in entries],
    }
    terminal.answer(record, table)


@command(app, "gc")
def collect(terminal: Terminal, max_size: MaxSize = None) -> None:
    """Remove what was used longest ago, until the rest fits.

    Example: `pivotal cache gc --max-size 500MB`
    """
    cache = _open()
    _tell(cache, cache.gc(None if max_size is None else parse_bytes(max_size)), terminal)


@command(app, "clear")
def clear(terminal: Terminal) -> None:
    """Remove every kept inversion. Files that `invert -o` wrote are not touched.

    Example: `pivotal cache clear`
    """
    cache = _open()
    _tell(cache, cache.clear(), terminal)


def _open() -> InversionCache:
    from pivotal.cache import InversionCache, default_cache_folder

    return InversionCache(default_cache_folder())


def _tell(cache: InversionCache, gone: Removed, terminal: Terminal) -> None:
    record: dict[str, Any] = {
        "folder": str(cache.folder),
        "removed": {"files": gone.entries, "bytes": gone.bytes},
    }
    terminal.show(
        record, f"removed {gone.entries} files, {gone.bytes / 1e6:.1f} MB, from {cache.folder}"
    )
