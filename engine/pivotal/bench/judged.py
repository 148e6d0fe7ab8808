"""What was judged already, as JSON lines that an interrupted evaluation goes on from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pivotal.bench.rows import append
from pivotal.code_version import whole_code


@dataclass(frozen=True)
class Judged:
    """A task's figures by one method. NaN where a figure has no meaning for it.

    error: why it failed; it then counts as no success, and has no other figure.
    """

    task: str
    kind: str
    success: float = math.nan
    background_psnr: float = math.nan
    background_ssim: float = math.nan
    source_psnr: float = math.nan
    vae_psnr: float = math.nan
    clip_score: float = math.nan
    lpips: float = math.nan
    error: str | None = None


class JudgedFile:
    """A file of what was judged; None keeps nothing. settings: what decides figures beside the
    task and the code, as JSON has it.

    Several processes may append to one file. What another code judged is not found.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._common = {"code": whole_code(), **settings}
        self._known: dict[str, Judged] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                self._remember(line)

    def _remember(self, line: str) -> None:
        try:
            row = json.loads(line)
            self._known[row["key"]] = Judged(**row["judged"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # torn by a crash, or another program's

    def key(self, method: str, *task: Any) -> str:
        """Equal for the same work: arrays by their bytes, the rest by its JSON or repr."""
        digest = hashlib.sha256(json.dumps([self._common, method], sort_keys=True).encode())
        for each in task:
            digest.update(each.tobytes() if hasattr(each, "tobytes") else repr(each).encode())
        return digest.hexdigest()[:32]

    def get(self, key: str) -> Judged | None:
        return self._known.get(key)

    def put(self, key: str, method: str, judged: Judged) -> None:
        """On disk when this returns."""
        if self._path is None:
            return
        figures = {  # JSON has no NaN
            name: value
            for name, value in asdict(judged).items()
            if not (isinstance(value, float) and math.isnan(value))
        }
        append(self._path, {"key": key, "method": method, "judged": figures})
