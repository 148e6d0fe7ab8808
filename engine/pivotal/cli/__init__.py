"""The command line. Results go to stdout, all else to stderr.

This file is imported at every start, so it imports nothing: Ctrl-C is minded from the first moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands import app

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, on the process's own arguments if None, and exit.

    Wrong input: one sentence on stderr and exit code 2. Ctrl-C: 130.
    """
    from .guard import guarded

    def run(arguments: Sequence[str], interruption: Any) -> int:
        from .commands import app

        answer = app(args=arguments, prog_name="pivotal", standalone_mode=False, obj=interruption)
        return answer if isinstance(answer, int) else 0

    guarded(run, arguments)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'pivotal.cli' has no attribute {name!r}")
    from .commands import app

    return app
