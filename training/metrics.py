"""Offline metrics, vectorised; scikit-learn is their oracle in the tests.

A metric that the labels do not define (one class only) is None, never a number made up.
Legend: B rows, T tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]

_TINY = 1e-15
ECE_BINS = 20


@dataclass(frozen=True)
class GroupedAUC:
    """GAUC: the mean AUC over users that have both classes, weighted by their rows.

    Attributes:
        value: None when no user has both classes.
        users: how many users counted.
        skipped: how many users had one class only.
    """

    value: float | None
    users: int
    skipped: int


def auc(labels_B: Labels, scores_B: Floats) -> float | None:
    """Return the area under the ROC curve, ties counted half."""
    grouped = grouped_auc(labels_B, scores_B, np.zeros(len(labels_B), dtype=np.int64))
    return grouped.value


def grouped_auc(labels_B: Labels, scores_B: Floats, users_B: NDArray[np.integer]) -> GroupedAUC:
    """Return the GAUC over `users_B`, in one sort of all rows."""
    if not len(labels_B):
        return GroupedAUC(None, 0, 0)
    order = np.lexsort((scores_B, users_B))
    users, scores, labels = users_B[order], scores_B[order], labels_B[order].astype(np.float64)
    new_user = np.r_[True, users[1:] != users[:-1]]
    user_starts = np.flatnonzero(new_user)
    user_of_row = np.cumsum(new_user) - 1
    tie_starts = np.flatnonzero(new_user | np.r_[True, scores[1:] != scores[:-1]])
    tie_sizes = np.diff(np.r_[tie_starts, len(scores)])
    mean_rank = tie_starts + (tie_sizes + 1) / 2  # 1-based, over all rows
    ranks = np.repeat(mean_rank, tie_sizes) - user_starts[user_of_row]
    rows = np.diff(np.r_[user_starts, len(scores)]).astype(np.float64)
    positives = np.add.reduceat(labels, user_starts)
    rank_sums = np.add.reduceat(ranks * labels, user_starts)
    pairs = positives * (rows - positives)
    both = pairs > 0
    if not both.any():
        return GroupedAUC(None, 0, len(rows))
    per_user = (rank_sums[both] - positives[both] * (positives[both] + 1) / 2) / pairs[both]
    value = float(np.average(per_user, weights=rows[both]))
    return GroupedAUC(value, int(both.sum()), int((~both).sum()))


def log_loss(labels_B: Labels, p_B: Floats) -> float:
    """Return the mean cross-entropy in nats."""
    p = np.clip(p_B.astype(np.float64), _TINY, 1 - _TINY)
    return float(-np.mean(np.where(labels_B == 1, np.log(p), np.log1p(-p))))


def normalised_entropy(labels_B: Labels, p_B: Floats) -> float | None:
    """Return the log-loss over that of always predicting the labels' own rate (He et al., 2014)."""
    rate = float(np.mean(labels_B))
    if rate in (0.0, 1.0):
        return None
    return log_loss(labels_B, p_B) / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


def pcoc(labels_B: Labels, p_B: Floats) -> float | None:
    """Return predicted over observed positives, Σp / Σy."""
    observed = int(np.sum(labels_B))
    return float(np.sum(p_B, dtype=np.float64)) / observed if observed else None


def reliability(labels_B: Labels, p_B: Floats, bins: int = ECE_BINS) -> NDArray[np.float64]:
    """Return per equal-mass bin its mean prediction, observed rate and number of rows [bins, 3]."""
    order = np.argsort(p_B, kind="stable")
    edges = np.linspace(0, len(p_B), min(bins, len(p_B)) + 1).astype(np.int64)
    counts = np.diff(edges).astype(np.float64)
    predicted = np.add.reduceat(p_B[order].astype(np.float64), edges[:-1]) / counts
    observed = np.add.reduceat(labels_B[order].astype(np.float64), edges[:-1]) / counts
    return np.column_stack([predicted, observed, counts])


def expected_calibration_error(labels_B: Labels, p_B: Floats, bins: int = ECE_BINS) -> float:
    """Return the mean |predicted − observed| over equal-mass bins, weighted by rows."""
    table = reliability(labels_B, p_B, bins)
    return float(np.average(np.abs(table[:, 0] - table[:, 1]), weights=table[:, 2]))


def task_metrics(labels_B: Labels, p_B: Floats, users_B: NDArray[np.integer] | None) -> dict[str, float | int | None]:
    """Return every metric of one task by its name in the evaluation JSON."""
    gauc = GroupedAUC(None, 0, 0) if users_B is None else grouped_auc(labels_B, p_B, users_B)
    return {
        "auc": auc(labels_B, p_B),
        "gauc": gauc.value,
        "gauc_users": gauc.users,
        "log_loss": log_loss(labels_B, p_B),
        "ne": normalised_entropy(labels_B, p_B),
        "pcoc": pcoc(labels_B, p_B),
        "ece": expected_calibration_error(labels_B, p_B),
        "positives": int(np.sum(labels_B)),
    }
