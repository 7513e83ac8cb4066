"""A finished run → a bundle folder: graph, manifest, schema, golden request; whole or not at all."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path

import numpy as np

from bundle.files import new_folder
from bundle.golden import Golden, golden_bytes
from bundle.manifest import FEATURES_FILE, GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, Parity, Provenance, Task
from bundle.manifest import list_files as listed
from bundle.read import Bundle, input_tensors, output_tensors, read_bundle
from model_export.errors import OutputInvalid
from model_export.graph import write_serving_graph
from model_export.onnx_writer import OPSET
from model_export.parity import FP32_TOLERANCE, SampleRows, check_parity, network_outputs, sample_rows
from training.models.heads import LatentHead
from training.models.network import Network
from training.run import Run, read_run

GOLDEN_CANDIDATES = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def export_run(run_folder: Path, out: Path) -> Bundle:
    """Write the run's best network as the bundle `out` (models/NAME/VERSION) and return it, read back.

    Raises:
        OutputInvalid: `out` exists or is not named NAME/VERSION with a whole-number version.
        RunInvalid: the run is not finished or broken.
        ParityFailed: the graph differs from the network by more than 1e-5.
    """
    check_output(out)
    run = read_run(run_folder)
    network = run.trained_network()
    rows = sample_rows(run)
    inputs = input_tensors(run.schema)
    with new_folder(out) as folder:
        write_serving_graph(network, run.schema, folder)
        error, compared = check_parity(network, folder / MODEL_FILE, rows, inputs, FP32_TOLERANCE)
        (folder / FEATURES_FILE).write_text(run.schema.model_dump_json())
        (folder / GOLDEN_FILE).write_bytes(golden_bytes(_golden(network, rows, run)))
        manifest = Manifest(
            architecture=network.config.name,
            tasks=_tasks(run, network),
            inputs=inputs,
            outputs=output_tensors(len(run.description.tasks), has_latent=network.config.has_latent),
            opset=OPSET,
            parity=Parity(tolerance=FP32_TOLERANCE, max_abs_error=error, rows=compared),
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
        (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1))
        read_bundle(folder)
    return read_bundle(out)


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


def _tasks(run: Run, network: Network) -> tuple[Task, ...]:
    head = network.head
    alphas = head.alpha.tolist() if isinstance(head, LatentHead) else [None] * len(run.description.tasks)
    return tuple(
        Task(
            name=task.name,
            kind="negative" if task.kind == "negative" else "positive",
            base_rate=task.base_rate,
            alpha=alpha,
        )
        for task, alpha in zip(run.description.tasks, alphas, strict=True)
    )


def _golden(network: Network, rows: SampleRows, run: Run) -> Golden:
    """Return a request of validation rows and the network's own outputs."""
    items = np.arange(GOLDEN_CANDIDATES, dtype=np.int64) % len(rows.codes)
    inputs = rows.request(0, items, input_tensors(run.schema))
    return Golden(inputs, network_outputs(network, *rows.rows_of(0, items)))
