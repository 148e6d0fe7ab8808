"""Where compiled code is kept between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pivotal.cache import user_cache


def default_compile_folder() -> Path:
    """`pivotal/compiled` in the user's cache."""
    return user_cache() / "compiled"


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """While inside, torch's compilers look up and keep their code in `folder`; made if absent, for
    its owner alone. None: in torch's own.

    torch knows no other way to be told than the environment, which is put back at the end. Raises
    OSError for a folder that can't be made.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    places = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder.resolve()),
        "TRITON_CACHE_DIR": str(folder.resolve() / "triton"),
    }
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
