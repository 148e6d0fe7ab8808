"""A bfloat16 graph as a float32 one: ONNX Runtime has no bfloat16 kernels for a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def float32_twin(path: Path, folder: Path) -> Path:
    """The same graph and weights, every bfloat16 in them a float32, written into a folder.

    bfloat16 values are float32 values, so a network's twin computes what the network says, rounded
    less. Returns the twin's path.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    half, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    graph = model.graph
    attributes = [each for node in graph.node for each in node.attribute]
    tensors: list[Any] = [each.t for each in attributes if each.HasField("t")]
    for tensor in (*graph.initializer, *tensors):
        if tensor.data_type == half:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for each in attributes:
        if each.name in ("to", "dtype") and each.i == half:
            each.i = single
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    twin = folder / path.name
    weights = f"{path.stem}.weights"
    onnx.save(model, twin, save_as_external_data=True, location=weights)  # not small constants
    return twin
