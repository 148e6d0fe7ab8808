"""Which code made a result, as one text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from . import __version__
from .inversion_document import SCHEMA

_SOURCES = (  # what decides an inversion's numbers
    "inversion", "sampling", "model", "runtime", "images", "schedule.py", "query.py",
)  # fmt: skip


def code_version() -> str:
    """The version, the file's schema, and a digest of the sources that an inversion's numbers come
    from: a changed method never answers with the old one's inversions.
    """
    package = resources.files("pivotal")
    digest = _digest(*(package / name for name in _SOURCES), resources.files("pivotal_kernels"))
    return f"{__version__}/{SCHEMA}/{digest}"


def whole_code() -> str:
    """16 hexadecimal digits of all sources of both packages: what decides seconds and figures, the
    harness and the edits among it.
    """
    return _digest(resources.files("pivotal"), resources.files("pivotal_kernels"))[:16]


def _digest(*roots: Traversable) -> str:
    digest = hashlib.sha256()
    for root in roots:
        for source in _python_files(root):
            content = source.read_bytes()
            digest.update(f"{source.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _python_files(root: Traversable) -> Iterator[Traversable]:
    if root.is_file():
        if root.name.endswith(".py"):
            yield root
        return
    for child in sorted(root.iterdir(), key=lambda each: each.name):
        if child.name != "__pycache__":
            yield from _python_files(child)
