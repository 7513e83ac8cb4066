from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from training import metrics


def draw(seed: int, rows: int, levels: int | None = None):
    random = np.random.default_rng(seed)
    scores = random.random(rows) if levels is None else random.integers(levels, size=rows) / levels
    labels = (random.random(rows) < scores * 0.8 + 0.1).astype(np.uint8)
    return labels, scores, random.integers(max(2, rows // 10), size=rows)


@given(st.integers(0, 10_000), st.sampled_from([None, 2, 7]))
@settings(max_examples=40, deadline=None)
def test_auc_is_scikit_learns_with_and_without_ties(seed, levels):
    labels, scores, _ = draw(seed, 200, levels)
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([None, 3]))
@settings(max_examples=30, deadline=None)
def test_gauc_is_the_row_weighted_mean_of_each_users_auc(seed, levels):
    labels, scores, users = draw(seed, 300, levels)
    values, weights, skipped = [], [], 0
    for user in np.unique(users):
        mine = users == user
        if len(set(labels[mine])) < 2:
            skipped += 1
            continue
        values.append(roc_auc_score(labels[mine], scores[mine]))
        weights.append(mine.sum())
    found = metrics.grouped_auc(labels, scores, users)
    assert found.value == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert (found.users, found.skipped) == (len(values), skipped)


def test_one_class_has_no_auc_gauc_or_entropy():
    ones = np.ones(5, dtype=np.uint8)
    scores = np.linspace(0.1, 0.9, 5)
    assert metrics.auc(ones, scores) is None
    assert metrics.grouped_auc(ones, scores, np.arange(5)).value is None
    assert metrics.normalised_entropy(ones, scores) is None
    assert metrics.pcoc(1 - ones, scores) is None


def test_log_loss_and_normalised_entropy_match_scikit_learn():
    labels, scores, _ = draw(3, 1000)
    assert metrics.log_loss(labels, scores) == pytest.approx(sklearn_log_loss(labels, scores), rel=1e-9)
    rate = np.full(1000, labels.mean())
    assert metrics.normalised_entropy(labels, rate) == pytest.approx(1.0)


def test_log_loss_is_finite_for_certain_and_wrong_predictions():
    assert np.isfinite(metrics.log_loss(np.array([1, 0]), np.array([0.0, 1.0])))


def test_calibration_error_is_a_loop_over_equal_mass_bins():
    labels, scores, _ = draw(4, 1003)
    order = np.argsort(scores, kind="stable")
    edges = np.linspace(0, 1003, 21).astype(int)
    error = 0.0
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        rows = order[start:end]
        error += abs(scores[rows].mean() - labels[rows].mean()) * len(rows) / 1003
    assert metrics.expected_calibration_error(labels, scores) == pytest.approx(error, rel=1e-9)
    assert metrics.pcoc(labels, scores) == pytest.approx(scores.sum() / labels.sum())
