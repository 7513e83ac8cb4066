"""A bundle's graph, run by ONNX Runtime. Knows nothing of HTTP, of fusion, or of where bundles come from.

Legend: N candidates, T tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from msgspec import Struct
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from bundle import loops, operators
from bundle.encode import EncodedPart
from bundle.errors import ItemRowsMismatch, TensorMismatch
from bundle.golden import Arrays, check_replay
from bundle.items import ItemTable
from bundle.manifest import (
    ITEM_CODES,
    ITEM_ROWS,
    ITEM_VALUES,
    P_JOINT,
    P_UP,
    REQUEST_CODES,
    REQUEST_VALUES,
    P,
    Tensor,
)
from bundle.read import Bundle
from service.errors import ModelFailed

ORT_ERRORS = tuple(
    error for error in vars(ort_state).values() if isinstance(error, type) and issubclass(error, Exception)
) + (RuntimeError, ValueError)
"""Whatever ONNX Runtime raises; its own classes share no base but Exception."""

_DTYPES = {"int32": "tensor(int32)", "float32": "tensor(float)", "uint8": "tensor(uint8)"}
_OF_ITEMS = (ITEM_CODES, ITEM_VALUES)
_ROW_TOLERANCE = 1e-5
"""Of float rows, against their largest number: a product may be summed in another order."""


class Predicted(Struct, frozen=True):
    """What the model gives for one request.

    Attributes:
        p_NT: P(task), float32 [N, T], tasks in manifest order.
        p_joint_NT: P(task, UP), float32 [N, T], or None for a model without the latent state.
        p_up_N: P(UP), float32 [N], or None likewise.
    """

    p_NT: NDArray[np.float32]
    p_joint_NT: NDArray[np.float32] | None
    p_up_N: NDArray[np.float32] | None


class Engine:
    """A bundle's warmed sessions."""

    def __init__(self, bundle: Bundle, warmup_runs: int = 1, *, stock_graphs: bool = False) -> None:
        """Load the graphs, check them against the manifest, warm them up and replay the golden requests.

        Where there are graphs in operators of our own, of the version that is here and usable, they serve; with
        `stock_graphs`, never.
        Weights in external files are memory-mapped by ONNX Runtime, so that processes share their pages.

        Raises:
            TensorMismatch: a graph does not load, or its inputs or outputs are not the manifest's.
            GoldenMismatch: it does not reproduce the golden outputs, or gives NaN or infinity.
            ItemRowsMismatch: the item table's rows are not what the bundle makes of the same features.
        """
        manifest = bundle.manifest
        self._manifest = manifest
        self.fused = manifest.fused == operators.VERSION and operators.usable() and not stock_graphs
        """Whether graphs in operators of our own serve."""
        whole = bundle.fused_model_path if self.fused else bundle.model_path
        self._whole = _Graph(whole, manifest.inputs, manifest.outputs)
        self._rank_rows: _Graph | None = None
        self._item_rows: _Graph | None = None
        for _ in range(warmup_runs):
            replayed = self._whole.run(bundle.golden.inputs)
        check_replay(bundle.golden, replayed, manifest.parity.tolerance)
        if bundle.items is not None:
            row = bundle.items.entry.row
            of_items = tuple(tensor for tensor in manifest.inputs if tensor.name in _OF_ITEMS)
            of_request = tuple(tensor for tensor in manifest.inputs if tensor.name not in _OF_ITEMS)
            self._item_rows = _Graph(bundle.item_encoder_path, of_items, (row,))
            ranks = bundle.fused_rows_model_path if self.fused else bundle.rows_model_path
            self._rank_rows = _Graph(ranks, (*of_request, row), manifest.outputs)
            self._replay_items(bundle.items, warmup_runs)

    def predict(self, request: EncodedPart, items: EncodedPart) -> Predicted:
        """Return the probabilities of one request row and N items by their features.

        Raises:
            ModelFailed: the run failed, or an output is not finite.
        """
        return self._predicted(self._whole, _inputs(request, items), len(items.codes_NC))

    def predict_rows(self, request: EncodedPart, rows_NB: NDArray[np.generic]) -> Predicted:
        """Return the probabilities of one request row and N items by their rows.

        Raises:
            ModelFailed: the run failed, or an output is not finite.
        """
        assert self._rank_rows is not None
        return self._predicted(self._rank_rows, _inputs(request, None) | {ITEM_ROWS: rows_NB}, len(rows_NB))

    def rows_of(self, items: EncodedPart) -> NDArray[np.generic]:
        """Return the rows of items by their features, as the item table holds them.

        Raises:
            ModelFailed: the run failed.
        """
        assert self._item_rows is not None
        return np.asarray(self._item_rows.run(_inputs(None, items))[ITEM_ROWS])

    def _predicted(self, graph: _Graph, inputs: Arrays, rows: int) -> Predicted:
        if rows == 0:
            tasks, latent = len(self._manifest.tasks), self._manifest.has_latent
            empty_NT, empty_N = np.empty((0, tasks), np.float32), np.empty(0, np.float32)
            return Predicted(empty_NT, empty_NT if latent else None, empty_N if latent else None)
        outputs = graph.run(inputs)
        if loops.compiled is None or not loops.compiled.all_finite(outputs.values()):
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise ModelFailed(f"output {name!r}", found="NaN or infinity", expected="finite numbers")
        return Predicted(outputs[P], outputs.get(P_JOINT), outputs.get(P_UP))

    def _replay_items(self, items: ItemTable, warmup_runs: int) -> None:
        """Replay the golden request of items of the table: by their rows, and by rows made of their features."""
        assert self._rank_rows is not None and self._item_rows is not None
        golden, tolerance = items.golden, items.entry.parity.tolerance
        kept = items.rows_MB[items.find(items.golden_ids)]
        made = self._item_rows.run(golden.inputs)[ITEM_ROWS]
        largest = float(np.abs(kept.astype(np.float64) - made).max(initial=0)) if kept.shape == made.shape else np.inf
        allowed = 0.0 if kept.dtype == np.uint8 else _ROW_TOLERANCE * float(np.abs(made).max(initial=1))
        if not largest <= allowed:
            found = f"rows off by {largest:.3g}"
            raise ItemRowsMismatch("item table", found=found, expected=f"at most {allowed:.3g}")
        for _ in range(warmup_runs):
            replayed = self._rank_rows.run(golden.inputs | {ITEM_ROWS: kept})
        check_replay(golden, replayed, tolerance)


class _Graph:
    """One session and the tensors it was checked to have."""

    def __init__(self, path: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self._session = _session(path)
        self._inputs = tuple(tensor.name for tensor in inputs)
        self._outputs = tuple(tensor.name for tensor in outputs)
        _check_tensors(path, self._session, inputs, outputs)

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Return outputs by name; arrays that the graph does not take are left out."""
        inputs = {name: arrays[name] for name in self._inputs}
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except ORT_ERRORS as exc:
            raise ModelFailed("model", found=_line(exc), expected="an answer") from exc


def _inputs(request: EncodedPart | None, items: EncodedPart | None) -> Arrays:
    arrays: Arrays = {}
    if request is not None:
        arrays |= {REQUEST_CODES: request.codes_NC, REQUEST_VALUES: request.values_NV}
    if items is not None:
        arrays |= {ITEM_CODES: items.codes_NC, ITEM_VALUES: items.values_NV}
    return arrays


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what it would log is raised, and named by us
    operators.register(options)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as exc:
        raise TensorMismatch(str(path), found=_line(exc), expected="a graph that loads") from exc


def _check_tensors(path: Path, session: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Check names, dtypes and shapes of a graph against what the manifest says.

    Raises:
        TensorMismatch: names the tensor.
    """
    for kind, found, wanted in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        where = f"{path}: {kind}"
        names = [node.name for node in found]
        if sorted(names) != sorted(tensor.name for tensor in wanted):
            raise TensorMismatch(f"{where}s", found=names, expected=[tensor.name for tensor in wanted])
        nodes = {node.name: node for node in found}
        for tensor in wanted:
            node = nodes[tensor.name]
            shape = ["N" if isinstance(size, str | None) else size for size in node.shape]
            if (node.type, shape) != (_DTYPES[tensor.dtype], list(tensor.shape)):
                raise TensorMismatch(
                    f"{where} {tensor.name!r}",
                    found=f"{node.type}{node.shape}",
                    expected=f"{_DTYPES[tensor.dtype]}{list(tensor.shape)}",
                )


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
