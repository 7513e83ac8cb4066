"""Evaluation of a run with the network, or of a bundle with the very graph that is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import ManifestInvalid
from bundle.manifest import P_JOINT, P_UP, P
from bundle.read import read_bundle
from model_export.parity import SampleRows, open_session, request_groups, run_graph
from simulator.oracle import recovery
from training.dataset import Prepared
from training.dwell import dwell_report
from training.errors import RunInvalid
from training.evaluate import report
from training.predict import Predictions, predict
from training.recovery import truth_of
from training.run import read_run


def evaluate_run(folder: Path, data: Prepared, split: str, truth: Path | None = None) -> dict[str, Any]:
    """Return the evaluation document of a finished run; with `truth`, a simulated log's folder, its recovery too.

    Raises:
        RunInvalid: the run is unfinished, or was trained with another feature schema than the data's.
    """
    run = read_run(folder)
    if run.schema != data.schema:
        raise RunInvalid(str(folder), found="another feature schema", expected=f"that of {data.folder}")
    network, rows = run.trained_network(), data.split(split)
    document = _document(predict(network, rows), data, split, run.description.task_names, truth)
    scale = run.description.dwell
    return document if scale is None else document | {"dwell": dwell_report(network, rows, scale)}


def evaluate_bundle(folder: Path, data: Prepared, split: str, truth: Path | None = None) -> dict[str, Any]:
    """Return the evaluation document of a bundle, rows scored by its graph, request by request.

    Raises:
        BundleError: the bundle is broken, or made with another feature schema than the data's.
    """
    bundle = read_bundle(folder)
    if bundle.schema != data.schema:
        raise ManifestInvalid(f"{folder}: features.json", found="another schema", expected=f"that of {data.folder}")
    rows = data.split(split)
    sample = SampleRows(
        np.asarray(rows.codes), np.asarray(rows.values), data.request_code_columns, data.request_value_columns
    )
    session, inputs, tasks = open_session(bundle.model_path), bundle.manifest.inputs, len(bundle.manifest.tasks)
    p = np.empty((rows.rows, tasks), dtype=np.float32)
    p_joint, p_up = np.empty_like(p), np.empty(rows.rows, dtype=np.float32)
    for group in request_groups(sample):
        outputs = run_graph(session, sample.request(int(group[0]), group, inputs))
        p[group] = outputs[P]
        if bundle.manifest.has_latent:
            p_joint[group], p_up[group] = outputs[P_JOINT], outputs[P_UP]
    found = Predictions(p, p_joint, p_up) if bundle.manifest.has_latent else Predictions(p, None, None)
    return _document(found, data, split, bundle.manifest.task_names, truth)


def _document(
    found: Predictions, data: Prepared, split: str, learned: Sequence[str], truth: Path | None
) -> dict[str, Any]:
    document = report(found, data.split(split), [task.name for task in data.tasks], learned)
    if truth is None:
        return document
    if found.p_up is None:
        raise RunInvalid("--truth", found="a model without P(UP)", expected="one with the latent state")
    return document | {"recovery": recovery(found.p_up, truth_of(truth, data, split)).to_dict()}
