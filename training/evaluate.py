"""From predictions and labels to the evaluation report: one document as JSON, one table to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from training.dataset import Split
from training.metrics import auc, task_metrics
from training.predict import Predictions


def report(predictions: Predictions, split: Split, all_tasks: Sequence[str], learned: Sequence[str]) -> dict[str, Any]:
    """Return the evaluation document.

    `all_tasks` names the label columns of the split; tasks that were not learned (held out) are judged by
    P(UP): AUC of 1 − P(UP) against them, where the model has it.
    """
    labels = np.asarray(split.labels)
    users = None if split.user is None else np.asarray(split.user)
    columns = {name: labels[:, index] for index, name in enumerate(all_tasks)}
    document: dict[str, Any] = {
        "rows": len(labels),
        "tasks": {
            name: task_metrics(columns[name], predictions.p[:, index], users) for index, name in enumerate(learned)
        },
        "p_up": None,
        "held_out": {},
    }
    if predictions.p_up is None:
        return document
    any_positive = np.maximum.reduce([columns[name] for name in learned])
    document["p_up"] = {
        "mean": float(np.mean(predictions.p_up, dtype=np.float64)),
        "auc_any": auc(any_positive, predictions.p_up),
    }
    document["held_out"] = {
        name: _held_out(columns[name], predictions.p_up) for name in all_tasks if name not in learned
    }
    return document


def table(document: dict[str, Any], title: str) -> Table:
    """Return the evaluation document as a table to print."""
    shown = Table(title=title)
    shown.add_column("task")
    names = ("auc", "gauc", "log_loss", "ne", "pcoc", "ece", "positives")
    for name in names:
        shown.add_column(name, justify="right")
    for task, metrics in document["tasks"].items():
        shown.add_row(task, *(_shown(metrics[name]) for name in names))
    return shown


def _held_out(labels_B: NDArray[np.integer], p_up_B: NDArray[np.floating]) -> dict[str, Any]:
    return {"auc_of_not_up": auc(labels_B, 1 - p_up_B), "positives": int(labels_B.sum())}


def _shown(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
