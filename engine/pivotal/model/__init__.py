"""Models: loaded from folders, the hub, the bundle, or made with random weights.

Names are imported when first used, so that `import pivotal` stays cheap. The function that loads is
`pivotal.model.load.load`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoencoder import Autoencoder
    from .families import FAMILIES, Family, family_named, family_of
    from .load import Model
    from .text import TextEncoder
    from .unet import RoutedUNet

__all__ = [
    "Model",
    "TextEncoder",
    "Autoencoder",
    "RoutedUNet",
    "Family",
    "FAMILIES",
    "family_named",
    "family_of",
]

_MODULES = {
    "Autoencoder": "autoencoder",
    "FAMILIES": "families",
    "Family": "families",
    "Model": "load",
    "RoutedUNet": "unet",
    "TextEncoder": "text",
    "family_named": "families",
    "family_of": "families",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
