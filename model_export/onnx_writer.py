"""A thin writer of ONNX graphs: constants, nodes, named inputs and outputs. Knows nothing of models.

Graphs of one folder share a file of large constants, in which equal ones stand once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundle.manifest import Tensor
from bundle.operators import DOMAIN as OPERATORS

OPSET = 18
MICROSOFT = "com.microsoft"
VERSIONS = {"": OPSET, MICROSOFT: 1, OPERATORS: 1}
IR_VERSION = 9
WEIGHTS_FILE = "model.weights"
EXTERNAL_FROM_BYTES = 1024
_ALIGNMENT_BYTES = 64
_DTYPES = {"int32": TensorProto.INT32, "float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


class WeightsFile:
    """The file that holds the large constants of all graphs in a folder."""

    def __init__(self, folder: Path) -> None:
        """Write to a new file in `folder`."""
        self._path = folder / WEIGHTS_FILE
        self._places: dict[bytes, list[tuple[str, str]]] = {}

    def place(self, array: NDArray[np.generic]) -> list[tuple[str, str]]:
        """Return where in the file an array's bytes lie, written there if no equal ones are."""
        data = np.ascontiguousarray(array).data.cast("B")
        key = hashlib.sha256(data).digest() + len(data).to_bytes(8, "little")
        if key not in self._places:
            with self._path.open("ab") as file:
                offset = -(-file.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
                file.write(bytes(offset - file.tell()))
                file.write(data)
            self._places[key] = [("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(len(data)))]
        return self._places[key]


class GraphWriter:
    """Collects nodes and constants; a value is the name of the edge that carries it."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._named = 0

    def constant(self, array: NDArray[np.generic], name: str = "weight") -> str:
        """Return the edge of a constant."""
        edge = self._edge(name)
        self._constants[edge] = np.array(array, order="C")
        return edge

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Return the output edges of a new node."""
        edges = [self._edge(operator.lower()) for _ in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), edges, name=edges[0], **attributes))
        return edges

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Return the only output edge of a new node."""
        return self.node(operator, *inputs, **attributes)[0]

    def microsoft(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Return the only output edge of a node of ONNX Runtime's own operators."""
        return self.node(operator, *inputs, domain=MICROSOFT, **attributes)[0]

    def ours(self, operator: str, *inputs: str) -> str:
        """Return the only output edge of a node of our own operators (`bundle.operators`)."""
        return self.ours_of(operator, 1, *inputs)[0]

    def ours_of(self, operator: str, outputs: int, *inputs: str) -> list[str]:
        """Return the output edges of a node of our own operators."""
        return self.node(operator, *inputs, outputs=outputs, domain=OPERATORS)

    def reshape(self, edge: str, shape: Sequence[int]) -> str:
        """Return `edge` in another shape; -1 is inferred."""
        return self.op("Reshape", edge, self.constant(np.array(shape, dtype=np.int64), "shape"))

    def split(self, edge: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        """Return `edge` cut into pieces of the given sizes."""
        if len(sizes) == 1:
            return [edge]
        cut = self.constant(np.array(sizes, dtype=np.int64), "sizes")
        return self.node("Split", edge, cut, outputs=len(sizes), axis=axis)

    def concat(self, edges: Sequence[str], axis: int = 1) -> str:
        """Return the edges side by side."""
        return edges[0] if len(edges) == 1 else self.op("Concat", *edges, axis=axis)

    def write(
        self,
        folder: Path,
        file: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[tuple[Tensor, str]],
        weights: WeightsFile | None = None,
    ) -> None:
        """Write the graph, its large constants in an external file that serving processes map and share."""
        weights = weights or WeightsFile(folder)
        for tensor, edge in outputs:
            self._nodes.append(helper.make_node("Identity", [edge], [tensor.name]))
        nodes = _nodes_behind(self._nodes, {tensor.name for tensor, _ in outputs})
        read = {edge for node in nodes for edge in node.input}
        domains = [domain for domain in VERSIONS if domain in {node.domain for node in nodes} | {""}]
        graph = helper.make_graph(
            nodes,
            "ranker",
            [_value_info(tensor) for tensor in inputs],
            [_value_info(tensor) for tensor, _ in outputs],
            [_initializer(edge, array, weights) for edge, array in self._constants.items() if edge in read],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid(x, VERSIONS[x]) for x in domains], ir_version=IR_VERSION
        )
        model.producer_name = "dlen-ranker"
        (folder / file).write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(folder / file), full_check=True)

    def _edge(self, name: str) -> str:
        self._named += 1
        return f"{name}_{self._named}"


def _nodes_behind(nodes: Sequence[Any], outputs: set[str]) -> list[Any]:
    """Return the nodes that outputs come of, in order; a node comes after those that it reads."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _initializer(edge: str, array: NDArray[np.generic], weights: WeightsFile) -> Any:
    """Return a constant, its bytes in the graph or, where they are many, in the file of weights."""
    if array.nbytes < EXTERNAL_FROM_BYTES:
        return numpy_helper.from_array(array, edge)
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=edge, data_type=dtype, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in weights.place(array):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _value_info(tensor: Tensor) -> Any:
    return helper.make_tensor_value_info(tensor.name, _DTYPES[tensor.dtype], list(tensor.shape))
