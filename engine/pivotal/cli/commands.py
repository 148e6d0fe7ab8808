"""All commands under one name. Each has a file, and imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from . import (
    bench,
    cache,
    compare,
    demo,
    doctor,
    edit,
    explain,
    export,
    generate,
    invert,
    methods,
    models,
    plan,
    profile,
    reconstruct,
    style,
)
from .command import command
from .eval import evaluate_edits

app = typer.Typer(
    name="pivotal",
    help="Invert real images into Stable Diffusion's noise space; edit them with Prompt-to-Prompt.",
    epilog='Example: `pivotal invert photo.jpg --prompt "a cat on a sofa"`, then '
    '`pivotal edit photo.safetensors --target "a dog on a sofa"`',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        from pivotal import __version__

        typer.echo(f"pivotal {__version__}")
        raise typer.Exit


@app.callback()
def pivotal(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


pivotal.__doc__ = None
_COMMANDS: tuple[Callable[..., Any], ...] = (
    invert.invert,
    reconstruct.reconstruct,
    edit.edit,
    style.style,
    generate.generate,
    explain.explain,
    compare.compare,
    methods.methods,
    plan.plan,
)
for _each in _COMMANDS:
    command(app)(_each)
app.add_typer(models.app, name="models")
app.add_typer(cache.app, name="cache")
app.add_typer(export.app, name="export")
app.add_typer(bench.app, name="bench")
command(app, "eval")(evaluate_edits)
for _each in (profile.profile, doctor.doctor, demo.demo):
    command(app)(_each)
