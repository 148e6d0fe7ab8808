"""The golden check of an ONNX file: ONNX Runtime on the CPU against torch."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pivotal.errors import BackendError
from pivotal.runtime.exported.comparison import Answers, answers, compare
from pivotal.runtime.exported.float32_twin import float32_twin
from pivotal.runtime.exported.onnx_network import OnnxNetwork
from pivotal.runtime.exported.parts import Part
from pivotal.runtime.exported.profile import ShapeProfile


def checked(part: Part, path: Path, profile: ShapeProfile) -> float:
    """A file's largest difference from torch on the CPU, one in bfloat16 by its float32 twin's.

    Each layer has a random route of its own, so in float32 one that was ignored shows here; a
    session's own probe comes before its first edit. Raises BackendError for one that is too large.
    """
    if part.dtype != torch.bfloat16:
        found = _answers(part, path, profile)
    else:
        with TemporaryDirectory(dir=path.parent, prefix=".twin-") as place:
            require_typed(path, Path(place))
            found = _answers(part, float32_twin(path, Path(place)), profile)
    return compare(part, found, profile)


def _answers(part: Part, path: Path, profile: ShapeProfile) -> Answers:
    """A file's, in a session that ends here: before torch runs, and its memory is needed.

    float32 is optimised as where it runs later; half precision, which is for GPUs, is not.
    """
    network = OnnxNetwork(path, torch.device("cpu"), lean=part.dtype != torch.float32)
    return answers(part, network, profile)


def require_typed(path: Path, folder: Path) -> None:
    """Infer every type and shape of a graph, as ONNX Runtime does of those that it can run.

    folder: for what is inferred. Raises BackendError for a graph whose types contradict.
    """
    from onnx import shape_inference

    inferred = folder / "inferred.onnx"
    try:
        shape_inference.infer_shapes_path(
            str(path), str(inferred), check_type=True, strict_mode=True
        )
    except shape_inference.InferenceError as error:
        raise BackendError(f"the types in {path.name} contradict: {error}") from error
    inferred.unlink()
