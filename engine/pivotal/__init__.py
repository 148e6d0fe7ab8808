"""pivotal: invert real images into Stable Diffusion's noise space and edit them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editing.edit import Edit
    from .engine import Engine
    from .errors import PivotalError
    from .inversion_file import Inversion, read_inversion, write_inversion
    from .results import Edited, Reconstruction

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "Edit",
    "Edited",
    "Inversion",
    "Reconstruction",
    "read_inversion",
    "write_inversion",
    "PivotalError",
]

_HOMES = {
    "Engine": "engine",
    "Edit": "editing.edit",
    "Edited": "results",
    "Inversion": "inversion_file",
    "Reconstruction": "results",
    "read_inversion": "inversion_file",
    "write_inversion": "inversion_file",
    "PivotalError": "errors",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import pivotal` alone stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pivotal' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
