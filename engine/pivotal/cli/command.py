"""How a function becomes a command: its dataclass parameters become options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], None]:
    """Register a function as a command. A parameter that is a dataclass stands for its fields.

    The fields' annotations, `Annotated[type, typer.Option(..)]`, say how each is given.
    """

    def register(function: Callable[..., None]) -> None:
        app.command(name)(expanded(function))

    return register


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the fields of its dataclass parameters as its own parameters."""
    hints = get_type_hints(function, include_extras=True)
    plain: list[inspect.Parameter] = []
    grouped: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind: Any = hints[parameter.name]
        if is_dataclass(kind):
            groups[parameter.name] = kind
            grouped += _members(kind)
        else:
            plain.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def call(**given: Any) -> None:
        whole = {
            group: kind(**{each.name: given.pop(each.name) for each in fields(kind)})
            for group, kind in groups.items()
        }
        function(**given, **whole)

    every = [*plain, *grouped]  # the command's own come first in its help
    call.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in every}
    return call


def _members(kind: Any) -> list[inspect.Parameter]:
    """A dataclass's fields as parameters of a function."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(kind)
    ]
