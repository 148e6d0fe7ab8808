"""Which nodes ONNX Runtime left to the CPU in a session that was asked for on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RECORDED = "session.record_ep_graph_assignment_info"
"""What a session is told by "1" so that it can say which provider runs which node."""
HOST = "CPUExecutionProvider"


def computed_on_the_host(subgraphs: Iterable[Any], path: Path) -> Counter[str]:
    """The operators of a graph's nodes that the CPU runs and that compute more than shapes.

    subgraphs: what `InferenceSession.get_provider_graph_assignment_info` returns. Integers are
    shapes and indices, which ONNX Runtime computes on the CPU on purpose; a node with a floating
    output moves its tensors there and back. path: the graph, whose weights are not read.
    """
    shapes = _integer_nodes(path)
    return Counter(
        node.op_type
        for subgraph in subgraphs
        if subgraph.ep_name == HOST
        for node in subgraph.get_nodes()
        if node.name not in shapes
    )


def _integer_nodes(path: Path) -> frozenset[str]:
    """The names of nodes all of whose outputs are integers or truth values."""
    import onnx
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    typed = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type in whole
    }
    return frozenset(node.name for node in graph.node if typed.issuperset(node.output))
