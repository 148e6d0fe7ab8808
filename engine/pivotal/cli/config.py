"""`--config file.toml`: defaults for options, which the command line overrides.

A table holds the options of the command that it is named after (`[edit]`, `[cache.gc]`); what
stands above all tables holds for every command that has such an option. Names are those of the
command line, without the dashes in front.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

_NEVER = ("config", "help", "install_completion", "show_completion")


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command that is about to be parsed.

    Raises ValueError for a file that can't be read, and for a name, a value's kind or a command
    that does not exist: all tables are checked, whichever command runs.
    """
    if path is None or context.resilient_parsing:
        return path
    root: Any = context.find_root().command
    commands = dict(_commands(root.commands))
    defaults = defaults_of(_parsed(path), commands, str(path))
    own = context.command_path.split(" ", 1)[1]
    context.default_map = {**(context.default_map or {}), **defaults[own]}
    return path


def defaults_of(
    document: Mapping[str, Any], commands: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, dict[str, Any]]:
    """For each command, its parameters' names to their defaults.

    commands: a command's words, as in "cache gc", to its parameters by option. where: the file's
    name, for errors.
    """
    shared = {}
    tables = {}
    for key, value in document.items():
        name = _name(key)
        if any(command.split(" ")[0] == key for command in commands):
            tables.update(_tables(key, value, commands, where))
        elif takers := [each for each in commands.values() if name in each]:
            shared[name] = _value(key, value, takers[0][name], where)
        else:
            words = sorted({command.split(" ")[0] for command in commands})
            options = sorted({_typed(each) for members in commands.values() for each in members})
            raise ValueError(
                f"{where}: {key!r} is no command and no option; commands are {', '.join(words)}; "
                f"options are {', '.join(options)}"
            )
    defaults = {}
    for command, members in commands.items():
        own = {name: value for name, value in shared.items() if name in members}
        for key, value in tables.get(command, {}).items():
            name = _name(key)
            if name not in members:
                raise ValueError(
                    f"{where}: [{command.replace(' ', '.')}] has no option {key!r}; accepted are "
                    f"{', '.join(sorted(map(_typed, members)))}"
                )
            own[name] = _value(key, value, members[name], where)
        defaults[command] = {members[name].name: value for name, value in own.items()}
    return defaults


def _tables(
    key: str, value: Any, commands: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, Mapping[str, Any]]:
    """A command's table, or those of a family of commands, by the commands' words."""
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where}: {key} = {value!r}; a table of its options, [{key}], is expected"
        )
    if key in commands:
        return {key: value}
    family = [command.split(" ")[1] for command in commands if command.startswith(f"{key} ")]
    for name in value:
        if name not in family:
            raise ValueError(
                f"{where}: [{key}] has no command {name!r}; accepted are {', '.join(family)}"
            )
    return {
        f"{key} {name}": _tables(f"{key} {name}", table, commands, where)[f"{key} {name}"]
        for name, table in value.items()
    }


def _value(key: str, value: Any, parameter: Any, where: str) -> Any:
    """A TOML value as what the parameter's own reader takes."""
    if parameter.multiple or parameter.nargs == -1:
        if isinstance(value, Mapping):  # of name=value options
            value = [f"{name}={each}" for name, each in value.items()]
        if not isinstance(value, list) or any(isinstance(e, list | dict) for e in value):
            raise ValueError(f"{where}: {key} = {value!r}; an array is expected")
        return [str(each) for each in value]
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError(f"{where}: {key} = {value!r}; true or false is expected")
        return value
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{where}: {key} = {value!r}; one text or number is expected")
    return str(value)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"--config {str(path)!r} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--config {str(path)!r} is not UTF-8 text, so it is no TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--config {str(path)!r} is no valid TOML: {error}") from None


def _commands(found: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Each command's words to its parameters, by the names of their options."""
    flat = {}
    for name, command in found.items():
        inner = getattr(command, "commands", None)
        if inner is not None:
            flat.update(_commands(inner, f"{prefix}{name} "))
            continue
        flat[prefix + name] = {
            _name(max(each.opts, key=len).lstrip("-")): each
            for each in command.params
            if each.param_type_name == "option" and each.name not in _NEVER
        }
    return flat


def _name(key: str) -> str:
    return key.replace("-", "_")


def _typed(name: str) -> str:
    return name.replace("_", "-")
