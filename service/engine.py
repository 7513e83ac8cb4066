"""A bundle's graph, run by ONNX Runtime. Knows nothing of HTTP, of fusion, or of where bundles come from.

Legend: N candidates, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from bundle.encode import EncodedPart
from bundle.errors import TensorMismatch
from bundle.golden import Arrays, check_replay
from bundle.manifest import ITEM_CODES, ITEM_VALUES, P_JOINT, P_UP, REQUEST_CODES, REQUEST_VALUES, P
from bundle.read import Bundle
from service.errors import ModelFailed

ORT_ERRORS = tuple(
    error for error in vars(ort_state).values() if isinstance(error, type) and issubclass(error, Exception)
) + (RuntimeError, ValueError)
"""Whatever ONNX Runtime raises; its own classes share no base but Exception."""

_DTYPES = {"int32": "tensor(int32)", "float32": "tensor(float)"}


@dataclass(frozen=True)
class Predicted:
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
    """One warmed session."""

    def __init__(self, bundle: Bundle, warmup_runs: int = 1) -> None:
        """Load the graph, check it against the manifest, warm it up and replay the golden request.

        Weights in external files are memory-mapped by ONNX Runtime, so that processes share their pages.

        Raises:
            TensorMismatch: the graph does not load, or its inputs or outputs are not the manifest's.
            GoldenMismatch: it does not reproduce the golden outputs, or gives NaN or infinity.
        """
        self._bundle = bundle
        self._session = _session(bundle)
        self._inputs = tuple(tensor.name for tensor in bundle.manifest.inputs)
        self._outputs = tuple(tensor.name for tensor in bundle.manifest.outputs)
        _check_tensors(bundle, self._session)
        for _ in range(warmup_runs):
            replayed = self._run(bundle.golden.inputs)
        check_replay(bundle.golden, replayed, bundle.manifest.parity.tolerance)

    def predict(self, request: EncodedPart, items: EncodedPart) -> Predicted:
        """Return the probabilities of one request row and N item rows.

        Raises:
            ModelFailed: the run failed, or an output is not finite.
        """
        rows = len(items.codes_NC)
        tasks = len(self._bundle.manifest.tasks)
        latent = self._bundle.manifest.has_latent
        if rows == 0:
            empty_NT, empty_N = np.empty((0, tasks), np.float32), np.empty(0, np.float32)
            return Predicted(empty_NT, empty_NT if latent else None, empty_N if latent else None)
        arrays: Arrays = {
            REQUEST_CODES: request.codes_NC,
            REQUEST_VALUES: request.values_NV,
            ITEM_CODES: items.codes_NC,
            ITEM_VALUES: items.values_NV,
        }
        outputs = self._run({name: arrays[name] for name in self._inputs})
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise ModelFailed(f"output {name!r}", found="NaN or infinity", expected="finite numbers")
        return Predicted(outputs[P], outputs.get(P_JOINT), outputs.get(P_UP))

    def _run(self, inputs: Arrays) -> dict[str, Any]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except ORT_ERRORS as exc:
            raise ModelFailed("model", found=_line(exc), expected="an answer") from exc


def _session(bundle: Bundle) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what it would log is raised, and named by us
    try:
        return ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as exc:
        raise TensorMismatch(str(bundle.model_path), found=_line(exc), expected="a graph that loads") from exc


def _check_tensors(bundle: Bundle, session: Any) -> None:
    """Check names, dtypes and shapes of the graph against the manifest.

    Raises:
        TensorMismatch: names the tensor.
    """
    inputs = ("input", session.get_inputs(), bundle.manifest.inputs)
    outputs = ("output", session.get_outputs(), bundle.manifest.outputs)
    for kind, found, wanted in (inputs, outputs):
        where = f"{bundle.model_path}: {kind}"
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
