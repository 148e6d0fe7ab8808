"""`pivotal doctor`: what this machine can run, and why not the rest."""

from __future__ import annotations

from .terminal import Terminal


def doctor(terminal: Terminal) -> None:
    """Say what this machine can run: devices, libraries, memory, folders.

    Example: `pivotal doctor`
    """
    from rich.table import Table

    from pivotal.doctor import examine

    findings = examine()
    table = Table("", "", "", show_header=False)
    for each in findings:
        table.add_row({True: "yes", False: "no"}[each.usable], each.name, each.detail)
    record = {each.name: {"usable": each.usable, "detail": each.detail} for each in findings}
    terminal.answer({"findings": record}, table)
