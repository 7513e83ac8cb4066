"""Whether the serving graph gives what the network gives, on real rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from bundle import operators
from bundle.golden import Arrays
from bundle.manifest import ITEM_CODES, ITEM_VALUES, P_JOINT, P_UP, REQUEST_CODES, REQUEST_VALUES, P, Tensor
from bundle.read import input_tensors
from model_export.errors import ParityFailed
from training.models.network import Network
from training.run import Run

FP32_TOLERANCE = 1e-5
CANDIDATES = (1, 2, 500)
REQUESTS_EACH = 4


class Session(Protocol):
    """What is asked of an ONNX Runtime session."""

    def get_outputs(self) -> Any:
        """Return the outputs, each with a name."""

    def run(self, names: list[str], inputs: Arrays) -> list[Any]:
        """Return the named outputs."""


@dataclass(frozen=True)
class SampleRows:
    """Encoded rows: codes int32 [rows, C] and values float32 [rows, V], request part first; labels [rows, T]."""

    codes: NDArray[np.int32]
    values: NDArray[np.float32]
    request_codes: int
    request_values: int
    labels: NDArray[np.uint8] | None = None

    def request(self, request_row: int, item_rows: NDArray[np.int64], tensors: Sequence[Tensor]) -> Arrays:
        """Return one request's graph inputs: the request part of one row, the item parts of others."""
        codes, values = self.codes, self.values
        inputs: Arrays = {
            REQUEST_CODES: codes[request_row : request_row + 1, : self.request_codes],
            REQUEST_VALUES: values[request_row : request_row + 1, : self.request_values],
            ITEM_CODES: codes[item_rows, self.request_codes :],
            ITEM_VALUES: values[item_rows, self.request_values :],
        }
        return {tensor.name: np.ascontiguousarray(inputs[tensor.name]) for tensor in tensors}

    def batch(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows as the network takes them."""
        return torch.from_numpy(self.codes[start:end].copy()), torch.from_numpy(self.values[start:end].copy())

    def rows_of(self, request_row: int, item_rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same request as the network takes it: whole rows."""
        codes, values = self.codes[item_rows].copy(), self.values[item_rows].copy()
        codes[:, : self.request_codes] = self.codes[request_row, : self.request_codes]
        values[:, : self.request_values] = self.values[request_row, : self.request_values]
        return torch.from_numpy(codes), torch.from_numpy(values)


def sample_rows(run: Run) -> SampleRows:
    """Return the validation rows kept with a run."""
    tensors = run.sample()
    inputs = {tensor.name: tensor.shape[1] for tensor in input_tensors(run.schema)}
    return SampleRows(
        tensors["codes"].numpy(),
        tensors["values"].numpy(),
        int(inputs.get(REQUEST_CODES, 0)),
        int(inputs.get(REQUEST_VALUES, 0)),
        tensors["labels"].numpy() if "labels" in tensors else None,
    )


def request_groups(rows: SampleRows) -> list[NDArray[np.int64]]:
    """Return the row numbers of each distinct request part."""
    values = np.ascontiguousarray(rows.values[:, : rows.request_values]).view(np.int32)
    keys = np.column_stack([rows.codes[:, : rows.request_codes], values])
    if not keys.shape[1]:
        return [np.arange(len(keys))]
    _, group_of_row = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group_of_row, kind="stable")
    starts = np.flatnonzero(np.diff(group_of_row[order], prepend=-1))
    return np.split(order, starts[1:])


def network_outputs(network: Network, codes: torch.Tensor, values: torch.Tensor) -> Arrays:
    """Return the network's outputs by tensor name."""
    with torch.inference_mode():
        out = network.eval()(codes, values).probabilities()
    outputs: Arrays = {P: out.p_BT.numpy()}
    if out.p_joint_BT is not None and out.p_up_B is not None:
        outputs |= {P_JOINT: out.p_joint_BT.numpy(), P_UP: out.p_up_B.numpy()}
    return outputs


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a one-thread CPU session of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    operators.register(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: Session, inputs: Arrays) -> Arrays:
    """Return the graph's outputs by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def max_abs_error(network: Network, session: Session, rows: SampleRows, tensors: Sequence[Tensor]) -> tuple[float, int]:
    """Return the largest difference of any output between graph and network, and the candidates compared.

    Raises:
        ParityFailed: an output of the graph is not finite, or of another shape.
    """
    return _largest(lambda row, items: network_outputs(network, *rows.rows_of(row, items)), session, rows, tensors)


def max_difference(exact: Session, session: Session, rows: SampleRows, tensors: Sequence[Tensor]) -> tuple[float, int]:
    """Return the largest difference of any output between two graphs, and the candidates compared.

    Raises:
        ParityFailed: an output of the second is not finite, or of another shape.
    """
    return _largest(lambda row, items: run_graph(exact, rows.request(row, items, tensors)), session, rows, tensors)


def _largest(
    exact: Callable[[int, NDArray[np.int64]], Arrays], session: Session, rows: SampleRows, tensors: Sequence[Tensor]
) -> tuple[float, int]:
    random, worst, compared = np.random.default_rng(0), 0.0, 0
    for count in CANDIDATES:
        for _ in range(REQUESTS_EACH):
            request_row, items = int(random.integers(len(rows.codes))), random.integers(len(rows.codes), size=count)
            expected = exact(request_row, items)
            found = run_graph(session, rows.request(request_row, items, tensors))
            for name, wanted in expected.items():
                if found[name].shape != wanted.shape or not np.isfinite(found[name]).all():
                    raise ParityFailed(
                        f"{name} of {count} candidates",
                        found=f"shape {found[name].shape}, finite: {bool(np.isfinite(found[name]).all())}",
                        expected=f"finite numbers of shape {wanted.shape}",
                    )
                worst = max(worst, float(np.abs(found[name].astype(np.float64) - wanted.astype(np.float64)).max()))
            compared += count
    return worst, compared


def check_parity(
    network: Network, session: Session, rows: SampleRows, tensors: Sequence[Tensor], tolerance: float
) -> tuple[float, int]:
    """Return the largest difference and the candidates compared.

    Raises:
        ParityFailed: the difference exceeds `tolerance`.
    """
    worst, compared = max_abs_error(network, session, rows, tensors)
    if worst > tolerance:
        raise ParityFailed("the graph against the network", found=f"off by {worst:.3g}", expected=f"≤ {tolerance:g}")
    return worst, compared
