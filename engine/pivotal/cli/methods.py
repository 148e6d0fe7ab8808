"""`pivotal methods`: how an image can be inverted."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completion import complete_methods
from .terminal import Terminal

if TYPE_CHECKING:
    from pivotal.inversion.registry import Method


def methods(
    terminal: Terminal,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD]",
            help="One method, with its options.",
            autocompletion=complete_methods,
        ),
    ] = None,
) -> None:
    """List the inversion methods: papers, costs, what each stores, the guidance it suits and the
    backends that can run it alone, with its default options; or one with its options.

    Example: `pivotal methods null-text`
    """
    from pivotal.inversion.registry import METHODS, method_named

    chosen = list(METHODS.values()) if name is None else [method_named(name)]
    records = [_record(each) for each in chosen]
    if name is None:
        terminal.answer({"methods": records}, _overview(records))
    else:
        terminal.answer({"methods": records}, _one(records[0]))


def _record(method: Method) -> dict[str, Any]:
    from pivotal.backends import backends_for

    needed = method.needed(method.options())
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "rows": method.rows,
        "stores": method.stores,
        "guidance": list(method.guidance),
        "fits_guidance": method.fits_guidance,
        "needs": sorted(each.__name__ for each in needed),
        "backends": backends_for(needed),
        "options": [
            {"name": each.name, "type": str(each.type), "default": _default(each)}
            for each in fields(method.options)
            if not (method.fits_guidance and each.name == "guidance_scale")
        ],
    }


def _default(option: Any) -> Any:
    """The default, as JSON has it; None where there is none."""
    if option.default is MISSING:
        return None
    value = option.default
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _overview(records: list[dict[str, Any]]) -> Any:
    from rich.table import Column, Table

    table = Table(
        Column("method", no_wrap=True),
        "what it is",
        Column("guidance", no_wrap=True),
        "UNet rows an image",
    )
    for record in records:
        low, high = record["guidance"]
        mark = "*" if record["backends"] == ["torch"] else ""
        title = f"{record['title']} ({record['paper']})"
        table.add_row(record["name"] + mark, title, f"{low:g} to {high:g}", record["rows"])
    table.caption = (
        "* on torch alone: it needs gradients. What is stored, backends and options: "
        "pivotal methods METHOD"
    )
    return table


def _one(record: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("", "", show_header=False)
    for key in ("name", "title", "paper", "rows", "stores"):
        table.add_row(key, record[key])
    table.add_row("guidance", "{:g} to {:g}".format(*record["guidance"]))
    table.add_row("inverts at", _inverted_at(record))
    table.add_row("backends", ", ".join(record["backends"]))
    for option in record["options"]:
        table.add_row(f"--option {option['name']}={option['default']}", option["type"])
    return table


def _inverted_at(record: dict[str, Any]) -> str:
    """At which guidance the way up runs; `--guidance-scale` is always that of the way back."""
    if record["fits_guidance"]:
        return "the guidance that it is sampled back at, --guidance-scale"
    if any(each["name"] == "guidance_scale" for each in record["options"]):
        return "guidance 1 whatever --guidance-scale says, unless --option guidance_scale is given"
    return "guidance 1"
