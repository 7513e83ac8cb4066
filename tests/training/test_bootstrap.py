"""The bootstrap against literally repeated rows and scikit-learn; its intervals against what they must cover."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.bootstrap import bootstrap_aucs, interval, mean_over_seeds, user_weights


def rows(seed: int, n: int = 300, users: int = 40, rate: float = 0.2):
    random = np.random.default_rng(seed)
    labels = (random.random(n) < rate).astype(np.uint8)
    scores = np.round(random.normal(size=(3, n)) + labels * [[0.0], [0.5], [1.0]], 1)  # rounded: ties
    return labels, scores, random.integers(0, users, n)


@pytest.mark.parametrize("at_once", [1, 700, 10**6])
def test_a_redraw_is_every_row_repeated_as_often_as_its_user(at_once, monkeypatch):
    monkeypatch.setattr("training.bootstrap._CELLS_AT_ONCE", at_once)
    labels, scores, users = rows(1)
    found = bootstrap_aucs(labels, scores, users, 7, seed=3)
    for r, weights in enumerate(user_weights(users.max() + 1, 7, seed=3)):
        repeated = np.repeat(np.arange(len(labels)), weights[users])
        for s in range(3):
            expected = roc_auc_score(labels[repeated], scores[s, repeated])
            assert found[s, r] == pytest.approx(expected, abs=1e-12)


def test_users_are_drawn_with_replacement_and_the_same_for_the_same_seed():
    first, again, other = (np.stack(list(user_weights(50, 20, seed))) for seed in (1, 1, 2))
    assert (first.sum(1) == 50).all()
    assert (first == again).all()
    assert (first != other).any()
    assert first.max() > 1


def test_a_redraw_without_positives_has_no_auc_and_leaves_the_interval():
    labels, users = np.array([1, 0, 0, 0]), np.arange(4)
    aucs = bootstrap_aucs(labels, np.array([[0.9, 0.1, 0.2, 0.3]]), users, 200, seed=1)[0]
    assert np.isnan(aucs).any()
    assert interval(aucs) == (1.0, 1.0)
    assert interval(np.full(3, np.nan)) is None


def test_seeds_are_redrawn_in_pairs():
    random = np.random.default_rng(0)
    baseline = random.normal(size=(5, 400))
    better = baseline + 0.25
    gain = mean_over_seeds(better, seed=9) - mean_over_seeds(baseline, seed=9)
    np.testing.assert_allclose(gain, 0.25)
    assert mean_over_seeds(baseline, seed=9).std() > 0


def test_the_interval_of_a_difference_covers_the_true_one_about_as_often_as_it_says():
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = (random.random(600) < 0.3).astype(np.uint8)
        shared = random.normal(size=600) + labels
        scores = np.stack([shared + random.normal(size=600), shared + random.normal(size=600)])  # equally good
        aucs = bootstrap_aucs(labels, scores, np.arange(600) // 3, 200, seed)
        low, high = interval(aucs[0] - aucs[1])
        covered += low <= 0 <= high
    assert 33 <= covered <= 40
