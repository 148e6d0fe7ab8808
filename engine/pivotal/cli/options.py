"""The options that commands share, as frozen dataclasses: a command takes them whole."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .completion import complete_dtypes, complete_methods, complete_models, complete_policies
from .config import read_config

if TYPE_CHECKING:
    from pivotal.cache import InversionCache
    from pivotal.engine import Engine

_MODEL = "Model"  # panels of a command's help
EVERY = "In general"

Dtype = Annotated[
    str,
    typer.Option(
        help="The UNet's: `float32`, `bfloat16`, `float16`, `float64`.",
        autocompletion=complete_dtypes,
        rich_help_panel=_MODEL,
    ),
]
Method = Annotated[
    str,
    typer.Option(help="See `pivotal methods`.", autocompletion=complete_methods),
]
Steps = Annotated[int, typer.Option(help="Steps of the schedule.")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="Default: 7.5 for most models; the inversion's in edits.")
]
Option = Annotated[
    list[str] | None, typer.Option(help="The method's own, `name=value`; may repeat.")
]
Policy = Annotated[
    str,
    typer.Option(
        help="Fit to the model: `crop`, `pad`, `stretch`.", autocompletion=complete_policies
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Height and width in pixels, as `512x768`."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Embed no settings in the pictures.")
]
MaxSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="As `500MB` or `2GB`. Default: 2GB.")
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: Annotated[
        str | None,
        typer.Option(
            help="A name of `pivotal models`, a folder or a hub id. Default: the inversion's, or "
            "`shapes`.",
            autocompletion=complete_models,
            rich_help_panel=_MODEL,
        ),
    ] = None
    device: Annotated[
        str, typer.Option(help="`cpu`, `cuda`, `cuda:1`.", rich_help_panel=_MODEL)
    ] = "cpu"
    dtype: Dtype = "float32"
    variant: Annotated[
        str | None,
        typer.Option(help="The weights' variant, such as `fp16`.", rich_help_panel=_MODEL),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="A hub model's branch, tag or commit.", rich_help_panel=_MODEL),
    ] = None
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never ask the hub.", rich_help_panel=_MODEL)
    ] = False

    def load(self, default: str = "shapes", cache: InversionCache | None = None) -> Engine:
        """The engine. default: the model where none was named."""
        from pivotal.engine import Engine

        return Engine.load(
            self.model or default,
            cache=cache,
            device=self.device,
            dtype=self.dtype,
            variant=self.variant,
            revision=self.revision,
            local_files_only=self.local_files_only,
        )


@dataclass(frozen=True)
class CacheOptions:
    """Whether inversions are looked up and kept."""

    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Neither look up nor keep the inversion.", rich_help_panel=EVERY
        ),
    ] = False

    def open(self) -> InversionCache | None:
        from pivotal.cache import InversionCache, default_cache_folder

        return None if self.no_cache else InversionCache(default_cache_folder())


@dataclass(frozen=True)
class ConfigOptions:
    """Where defaults come from."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Defaults for options, in TOML; a section a command.",
            is_eager=True,
            rich_help_panel=EVERY,
            callback=read_config,
        ),
    ] = None


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], None]:
    """Register a function as a command. A parameter that is a dataclass stands for its fields.

    The fields' annotations, `Annotated[type, typer.Option(..)]`, say how each is given.
    """

    def register(function: Callable[..., None]) -> None:
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
                plain.append(
                    parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
                )

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
        app.command(name)(call)

    return register


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


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `512x768`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})\s*[x×]\s*(\d{1,6})", text.strip())
    if not match or not all(map(int, match.groups())):
        raise ValueError(f"--size {text!r}: write height and width in pixels, as 512x768")
    return int(match[1]), int(match[2])


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Bytes of `500MB`."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS:
        raise ValueError(f"--max-size {text!r}: write a size as 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def named(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """`name=value` texts as a mapping."""
    values: dict[str, str] = {}
    for text in given or ():
        name, found, value = text.rpartition("=")
        if not found or not name:
            raise ValueError(f"--{option} {text!r}: write name=value")
        if name in values:
            raise ValueError(f"--{option} {name} is given twice")
        values[name] = value
    return values


def numbers(given: Sequence[str] | None, option: str) -> dict[str, float]:
    """`name=number` texts as a mapping."""
    values = {}
    for name, value in named(given, option).items():
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"--{option} {name}={value}: {value!r} is not a number") from None
    return values


def prompt_text(text: str, option: str) -> str:
    """A prompt that says something. Raises ValueError for an empty one."""
    if not text.strip():
        raise ValueError(f"{option} is empty; say in a few words what the picture shows")
    return text
