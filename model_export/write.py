"""A finished run → a bundle folder: graph, manifest, schema, golden request; whole or not at all."""

from __future__ import annotations

import datetime
import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from bundle import operators
from bundle.files import new_folder
from bundle.golden import Golden, golden_bytes
from bundle.manifest import (
    FEATURES_FILE,
    FUSED_MODEL_FILE,
    FUSED_ROWS_MODEL_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    ItemTableEntry,
    Manifest,
    P,
    Parity,
    PrecisionGate,
    Provenance,
    Task,
    Tensor,
    write_manifest,
)
from bundle.manifest import list_files as listed
from bundle.read import Bundle, input_tensors, output_tensors, read_bundle
from bundle.reference import shares_of
from bundle.signature import write_signature
from model_export.errors import OutputInvalid, ParityFailed, PrecisionRefused
from model_export.fused_graph import FusedInt8Graph, can_fuse
from model_export.gate import check_gate, measure_gate
from model_export.graph import ServingGraph
from model_export.int8_graph import Int8Graph
from model_export.int8_reference import reference_network
from model_export.item_graphs import FloatCut
from model_export.item_int8 import integer_cut
from model_export.items import CutSession, ItemsWanted, encoded_items, write_features, write_items
from model_export.onnx_writer import OPSET, WeightsFile
from model_export.parity import (
    FP32_TOLERANCE,
    SampleRows,
    Session,
    check_parity,
    max_difference,
    network_outputs,
    open_session,
    run_graph,
    sample_rows,
)
from model_export.quantise import quantise
from training.calibrate import fit_calibrations
from training.models.heads import LatentHead
from training.models.network import Network
from training.run import Run, read_run

GOLDEN_CANDIDATES = 16
INT8_TOLERANCE = 2e-3
"""Of an int8 graph against its integer arithmetic: sums are exact, but a rescaled one may round the other way."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class _Graph:
    """A written and checked graph: what the manifest says of it, golden request, P(task) of the sample, item table, and
    the version of the operators that fused ones are of."""

    parity: Parity
    golden: Golden
    p_BT: NDArray[Any]
    gate: PrecisionGate | None = None
    items: ItemTableEntry | None = None
    fused: int | None = None


def export_run(
    run_folder: Path,
    out: Path,
    precision: Literal["fp32", "int8"] = "fp32",
    items: ItemsWanted | None = None,
    sign_key: Ed25519PrivateKey | None = None,
) -> Bundle:
    """Write the run's best network as the bundle `out` (models/NAME/VERSION) and return it, read back.

    With `items`, a table of theirs is encoded and shipped, so that requests may name items by id. With `sign_key`, the
    manifest is signed.

    Raises:
        OutputInvalid: `out` exists or is not named NAME/VERSION with a whole-number version.
        RunInvalid: the run is not finished or broken.
        ParityFailed: the graph does not give what it must.
        PrecisionRefused: int8 changes a score by more than the gate allows.
        TableInvalid, SourceInvalid, ItemIdInvalid: what is wrong with the item table.
    """
    check_output(out)
    run = read_run(run_folder)
    network = run.trained_network()
    rows = sample_rows(run)
    write = _write_int8 if precision == "int8" else _write_fp32
    with new_folder(out) as folder:
        graph = write(folder, network, rows, run, items)
        (folder / FEATURES_FILE).write_text(run.schema.model_dump_json())
        (folder / GOLDEN_FILE).write_bytes(golden_bytes(graph.golden))
        manifest = Manifest(
            architecture=network.config.name,
            tasks=_tasks(run, network, graph.p_BT, rows),
            inputs=input_tensors(run.schema),
            outputs=output_tensors(len(run.description.tasks), has_latent=network.config.has_latent),
            opset=OPSET,
            precision=precision,
            parity=graph.parity,
            precision_gate=graph.gate,
            fused=graph.fused,
            items=graph.items,
            files=dict(listed(folder)),
            offline_metrics={"validation": run.result()["best"]},
            provenance=Provenance(
                data_fingerprint=run.description.data_fingerprint,
                git_commit=git_commit(),
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                loss=run.description.config.training.loss,
                seed=run.description.config.training.seed,
            ),
        )
        raw = manifest.model_dump_json(indent=1).encode()
        write_manifest(folder, raw)
        if sign_key is not None:
            write_signature(folder, out, raw, sign_key)
        read_bundle(folder)
    return read_bundle(out)


def export_fastest(
    run_folder: Path, out: Path, items: ItemsWanted | None = None, sign_key: Ed25519PrivateKey | None = None
) -> tuple[Bundle, PrecisionRefused | None]:
    """Return the bundle in int8 where the gate lets it through, else in fp32 with the reason.

    Raises:
        OutputInvalid, RunInvalid, ParityFailed: see `export_run`.
    """
    try:
        return export_run(run_folder, out, "int8", items, sign_key), None
    except PrecisionRefused as refused:
        return export_run(run_folder, out, "fp32", items, sign_key), refused


def check_output(out: Path) -> None:
    """Check that `out` may become a bundle.

    Raises:
        OutputInvalid: see `export_run`.
    """
    name, version = out.absolute().parent.name, out.name
    if not _NAME.fullmatch(name):
        raise OutputInvalid(str(out), found=f"model name {name!r}", expected="letters, digits, '.', '_', '-'")
    if not (version.isascii() and version.isdigit()) or version.startswith("0"):
        raise OutputInvalid(str(out), found=f"version {version!r}", expected="models/NAME/VERSION, VERSION from 1 up")
    if out.exists():
        raise OutputInvalid(str(out), found="an existing version", expected="a new one; a version never changes")


def git_commit() -> str:
    """Return the commit of the working tree, "unknown" outside one."""
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"


def _tasks(run: Run, network: Network, p_BT: NDArray[Any], rows: SampleRows) -> tuple[Task, ...]:
    head = network.head
    alphas = head.alpha.tolist() if isinstance(head, LatentHead) else [None] * len(run.description.tasks)
    calibrations = [None] * len(alphas) if rows.labels is None else fit_calibrations(p_BT, rows.labels)
    return tuple(
        Task(
            name=task.name,
            kind="negative" if task.kind == "negative" else "positive",
            base_rate=task.base_rate,
            alpha=alpha,
            calibration=calibration,
            reference_shares=shares_of(p_B),
        )
        for task, alpha, calibration, p_B in zip(run.description.tasks, alphas, calibrations, p_BT.T, strict=True)
    )


def _write_fp32(folder: Path, network: Network, rows: SampleRows, run: Run, items: ItemsWanted | None) -> _Graph:
    """Write the float32 graph; its golden outputs are the network's."""
    inputs, weights = input_tensors(run.schema), WeightsFile(folder)
    ServingGraph(network, inputs).write(folder, weights)
    error, compared = check_parity(network, open_session(folder / MODEL_FILE), rows, inputs, FP32_TOLERANCE)
    golden_items = _golden_items(rows)
    golden = Golden(rows.request(0, golden_items, inputs), network_outputs(network, *rows.rows_of(0, golden_items)))
    parity = Parity(tolerance=FP32_TOLERANCE, max_abs_error=error, rows=compared)
    p_BT = network_outputs(network, *rows.batch(0, len(rows.codes)))[P]

    def judge(cut: CutSession) -> tuple[Parity, None]:
        error, compared = check_parity(network, cut, rows, inputs, FP32_TOLERANCE)
        return Parity(tolerance=FP32_TOLERANCE, max_abs_error=error, rows=compared), None

    entry = None
    if items is not None:
        given = write_features(folder, run.schema, items)
        cut = FloatCut(network, inputs, items.rows)
        entry = write_items(folder, items, given, cut, weights, rows, inputs, judge)
    return _Graph(parity, golden, p_BT, items=entry)


def _write_int8(folder: Path, network: Network, rows: SampleRows, run: Run, items: ItemsWanted | None) -> _Graph:
    """Write the int8 graph; its golden outputs are its own, which a machine that computes it wrongly will not give.

    No product saturates, with or without VNNI (`quantise.steps_of`), so that the replay holds on every machine.
    """
    inputs, weights = input_tensors(run.schema), WeightsFile(folder)
    quantised = quantise(network, *rows.batch(0, len(rows.codes)))
    Int8Graph(quantised, inputs).write(folder, weights)
    reference = reference_network(quantised)
    session = open_session(folder / MODEL_FILE)
    error, compared = check_parity(reference, session, rows, inputs, INT8_TOLERANCE)
    gate = measure_gate(network, session, rows, inputs, run.description.task_names)
    check_gate(gate)
    request = rows.request(0, _golden_items(rows), inputs)
    golden = Golden(request, run_graph(session, request))
    parity = Parity(tolerance=INT8_TOLERANCE, max_abs_error=error, rows=compared)
    p_BT = network_outputs(reference, *rows.batch(0, len(rows.codes)))[P]
    fused = can_fuse(quantised) and operators.instructions() is not None
    if fused:
        FusedInt8Graph(quantised, inputs).write(folder, weights, FUSED_MODEL_FILE)
        _check_fused(session, open_session(folder / FUSED_MODEL_FILE), rows, inputs)

    def judge(cut: CutSession) -> tuple[Parity, PrecisionGate]:
        error, compared = max_difference(session, cut, rows, inputs)
        gate = measure_gate(network, cut, rows, inputs, run.description.task_names)
        check_gate(gate, "int8 by item rows")
        return Parity(tolerance=INT8_TOLERANCE, max_abs_error=error, rows=compared), gate

    entry = None
    if items is not None:
        given = write_features(folder, run.schema, items)
        pieces = itertools.chain(encoded_items(folder), [rows.request(0, np.arange(len(rows.codes)), inputs)])
        cut = integer_cut(quantised, inputs, items.rows, pieces)
        entry = write_items(folder, items, given, cut, weights, rows, inputs, judge)
        if fused:
            cut.write_fused(folder, weights)
            _check_fused(CutSession(folder), CutSession(folder, FUSED_ROWS_MODEL_FILE), rows, inputs)
    return _Graph(parity, golden, p_BT, gate, entry, operators.VERSION if fused else None)


def _check_fused(stock: Session, fused: Session, rows: SampleRows, inputs: tuple[Tensor, ...]) -> None:
    """Hold a graph in operators of our own against the stock one.

    Raises:
        ParityFailed: they differ by more than a stock graph may differ from its integer arithmetic.
    """
    worst, _ = max_difference(stock, fused, rows, inputs)
    if worst > INT8_TOLERANCE:
        raise ParityFailed(
            "the fused graph", found=f"off by {worst:.3g}", expected=f"≤ {INT8_TOLERANCE:g} of the stock one"
        )


def _golden_items(rows: SampleRows) -> NDArray[np.int64]:
    return np.arange(GOLDEN_CANDIDATES, dtype=np.int64) % len(rows.codes)
