"""What a command says: one JSON object on stdout if asked, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .guard import Interruption
from .options import EVERY, ConfigOptions

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pivotal.progress import ProgressBar


@dataclass(frozen=True)
class Terminal(ConfigOptions):
    """How a command speaks; part of every command."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=EVERY)
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bar, no tables.", rich_help_panel=EVERY)
    ] = False
    context: typer.Context = None  # type: ignore[assignment]  # typer fills it in

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, markup=False, emoji=False)  # prompts hold [ and :

    @property
    def interruption(self) -> Interruption:
        found = self.context.obj
        return found if isinstance(found, Interruption) else Interruption()

    @contextmanager
    def progress(self, prefix: str = "") -> Iterator[ProgressBar]:
        """A bar to call with an algorithm's notices. It also hears a Ctrl-C that was lost."""
        from pivotal.progress import ProgressBar

        check = self.interruption.check
        with ProgressBar(self.console, quiet=self.quiet, prefix=prefix, check=check) as bar:
            yield bar
        check()

    def show(self, record: Mapping[str, Any], *shown: RenderableType) -> None:
        """The command's answer: the record as JSON, or what is shown to a person, on stderr."""
        if self.as_json:
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
        elif not self.quiet:
            for each in shown:
                self.console.print(each)

    def answer(self, record: Mapping[str, Any], *shown: RenderableType) -> None:
        """As `show`, for commands whose tables are the result, and so go to stdout."""
        if self.as_json:
            self.show(record)
            return
        from rich.console import Console

        console = Console(file=sys.stdout, markup=False, emoji=False)
        for each in shown:
            console.print(each)

    def saved(self, paths: Sequence[Path], *more: str) -> None:
        """Say where the results lie."""
        if not self.quiet and not self.as_json:
            for path in paths:
                self.say(f"saved {path}")
            for sentence in more:
                self.say(sentence)

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)
