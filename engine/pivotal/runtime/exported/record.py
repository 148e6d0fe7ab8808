"""What an export is of: the page beside its files that identifies them."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pivotal.errors import BackendError
from pivotal.model.fingerprint import DISPLAYED
from pivotal.model.load import Model
from pivotal.runtime.exported.profile import ShapeProfile

SCHEMA = 1
FILE = "export.json"


@dataclass(frozen=True)
class Capacity:
    """How much the routes hold, which the graph fixes."""

    length: int  # tokens, L
    columns: int  # word columns, K
    self_layers: int
    cross_layers: int


@dataclass(frozen=True)
class EngineFacts:
    """What a TensorRT engine was built by and for."""

    flavour: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    sm: tuple[str, ...]  # compute capabilities: "89", "120"
    buckets: tuple[int, ...]  # batch sizes, an optimisation profile each
    refittable: bool
    stripped: bool  # without weights: refitted from the ONNX files when loaded
    checked: tuple[str, ...]  # compute capabilities on which they were compared with torch

    def options(self) -> str:
        """Those of the command that builds it."""
        given = [f" --flavour {self.flavour}"]
        given += [f" --sm {sm}" for sm in self.sm]
        given += [f" --bucket {rows}" for rows in self.buckets]
        given += [" --strip-weights"] * self.stripped
        given += [" --refit"] * self.refittable
        return "".join(given)


@dataclass(frozen=True)
class ExportRecord:
    """Which model, in which format, for which shapes. `files` are digests (SHA-256) by name."""

    model: str
    family: str
    fingerprint: str
    dtype: str  # of the UNet and the text encoders
    prediction_type: str
    profile: ShapeProfile
    capacity: Capacity
    versions: dict[str, str]
    errors: dict[str, float]  # largest difference from torch, over the largest output, by file
    files: dict[str, str]
    engine: EngineFacts | None = None
    additions: tuple[str, ...] = ()  # LoRAs and the like that the model had, `lora star:0.8`
    seal: str = ""  # of engines: see `engine_seal`

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "profile": self.profile.record()}

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.as_json(), indent=2) + "\n", "utf-8")

    def with_digests(self, folder: Path) -> ExportRecord:
        """The same with the digests of all files that lie in the folder."""
        names = sorted(each.name for each in folder.iterdir() if each.is_file())
        return replace(self, files={name: digest(folder / name) for name in names if name != FILE})

    def again(self, folder: Path | None = None) -> str:
        """The command that makes this export anew, in its folder's place; beside it if None."""
        sides = f" --height {self.profile.height} --width {self.profile.width}"
        kind, more = "onnx", f" --rows {self.profile.rows}"
        if self.engine is not None:
            kind, more = "tensorrt", self.engine.options()
        for each in reversed(self.additions):
            option, _, value = each.partition(" ")
            more = f" --{option} {shlex.quote(value)}{more}"
        return (
            f"`pivotal export {kind} --model {shlex.quote(self.model)} --dtype {self.dtype}{more}"
            f"{sides} -o {'DIR' if folder is None else shlex.quote(str(folder)) + ' --force'}`"
        )

    def require_model(self, model: Model, folder: Path) -> None:
        """Raise BackendError for an export of other weights or another precision."""
        dtype = str(model.dtype).removeprefix("torch.")
        mine = replace(self, model=model.name, dtype=dtype, additions=tuple(model.additions))
        again = mine.again()
        if self.fingerprint != model.fingerprint:
            raise BackendError(
                f"{str(folder)!r} was exported from model {self._titled()} "
                f"({self.fingerprint[:DISPLAYED]}), not {mine._titled()} "
                f"({model.fingerprint[:DISPLAYED]}); export that one: {again}"
            )
        if self.dtype != dtype:
            raise BackendError(
                f"{str(folder)!r} holds {self.dtype} networks where the model is loaded in "
                f"{dtype}; say dtype {self.dtype}, or export again: {again}"
            )
        if model.precision.arithmetic != "plain":
            raise BackendError(
                f"{str(folder)!r} computes in {self.dtype}, and {model.precision.name} is torch's "
                f"own arithmetic; say dtype {self.dtype}, or use backend torch"
            )

    def _titled(self) -> str:
        having = f" with {', '.join(self.additions)}" if self.additions else ""
        return f"{self.model!r}{having}"

    def require_intact(self, folder: Path, name: str) -> Path:
        """The path of one file. Raises BackendError for one that is missing or was changed."""
        path = folder / name
        if name not in self.files or not path.is_file():
            raise BackendError(f"{str(path)!r} is missing; export again: {self.again(folder)}")
        if digest(path) != self.files[name]:
            raise BackendError(
                f"{str(path)!r} is not the file that was exported (its SHA-256 differs); export "
                f"again: {self.again(folder)}"
            )
        return path


def read_record(folder: Path, kind: str = "onnx") -> ExportRecord:
    """Raises BackendError for a folder that holds no export of ours, or one of another schema.

    kind: of export that is looked for, "onnx" or "tensorrt".
    """
    if not folder.is_dir():
        raise BackendError(
            f"there is no folder {str(folder)!r}; `pivotal export {kind} -o DIR` makes one"
        )
    try:
        found = json.loads((folder / FILE).read_text("utf-8"))
        schema = found.pop("schema")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BackendError(
            f"{str(folder)!r} holds no export that can be read ({FILE}, which says what it is "
            f"of); make one with `pivotal export {kind} -o DIR`"
        ) from error
    if schema != SCHEMA:
        raise BackendError(f"{str(folder)!r} is an export of schema {schema}; {SCHEMA} is known")
    try:
        engine = found["engine"]
        if engine is not None:
            lists = {name: tuple(engine[name]) for name in ("sm", "buckets", "checked")}
            engine = EngineFacts(**{**engine, **lists})
        return ExportRecord(
            **{
                **found,
                "profile": ShapeProfile.from_record(found["profile"]),
                "capacity": Capacity(**found["capacity"]),
                "engine": engine,
                "additions": tuple(found.get("additions", ())),
            }
        )
    except (TypeError, KeyError, ValueError) as error:
        raise BackendError(f"{str(folder / FILE)!r} is damaged: {error}") from error


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
