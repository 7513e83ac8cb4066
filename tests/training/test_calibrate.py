"""Calibration against scipy and scikit-learn, and what it does to a model that is off by known numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from fusion.calibration import Calibration as Applied
from fusion.calibration import calibrate
from training.calibrate import SLOPES, fit, fit_calibrations, fit_task, log_loss, logit, pcoc


def rows(slope: float, offset: float, count: int = 20_000, seed: int = 0):
    """Probabilities of a model, and labels drawn from σ(slope · logit + offset)."""
    random = np.random.default_rng(seed)
    logits = random.normal(-2.0, 1.5, count)
    truth = 1 / (1 + np.exp(-(slope * logits + offset)))
    return 1 / (1 + np.exp(-logits)), (random.random(count) < truth).astype(np.uint8)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, -1.0), (1.7, 0.8)])
def test_the_fit_is_the_one_of_scipy_and_of_scikit_learn(slope, offset):
    p, labels = rows(slope, offset)
    found = fit(logit(p), labels)
    by_scipy = minimize(lambda x: log_loss(logit(p), labels, *x), [1.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    by_sklearn = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], labels)
    assert found == pytest.approx(by_scipy.x, abs=1e-4)
    assert found == pytest.approx([by_sklearn.coef_[0, 0], by_sklearn.intercept_[0]], abs=1e-4)
    assert found == pytest.approx((slope, offset), abs=0.15)


def test_a_model_that_promises_too_much_is_brought_to_what_happens():
    p, labels = rows(0.6, -1.0)
    found = fit_task(p, labels)
    assert found.pcoc_before == pytest.approx(p[10_000:].sum() / labels[10_000:].sum())
    assert found.pcoc_before > 1.3
    assert abs(found.pcoc_after - 1) < 0.05
    other_p, other_labels = rows(0.6, -1.0, seed=1)
    served = calibrate(other_p, Applied(found.temperature, found.offset))
    assert abs(pcoc(served, other_labels) - 1) < 0.05
    before, after = (log_loss(logit(x), other_labels, 1.0, 0.0) for x in (other_p, served))
    assert after < before - 0.01


def test_order_is_kept_even_where_the_model_is_the_wrong_way_round():
    p, labels = rows(-1.0, 0.0)
    slope, _ = fit(logit(p), labels)
    assert slope == SLOPES[0]
    assert fit_task(p, labels).temperature == pytest.approx(1 / SLOPES[0])


def test_labels_that_the_model_parts_without_error_give_finite_numbers():
    p = np.linspace(0.01, 0.99, 1000)
    found = fit_task(p, (p > 0.5).astype(np.uint8))
    assert found.temperature == pytest.approx(1 / SLOPES[1])
    assert np.isfinite(found.offset)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_a_model_that_says_one_number_is_given_the_right_one(constant):
    labels = (np.arange(1000) % 4 == 0).astype(np.uint8)
    found = fit_task(np.full(1000, constant), labels)
    assert np.isfinite([found.temperature, found.offset]).all()
    slope = 1 / found.temperature
    assert log_loss(logit(np.full(1000, constant)), labels, slope, found.offset) == pytest.approx(0.5623, abs=1e-3)


@pytest.mark.parametrize("positives", [0, 9, 991, 1000])
def test_too_few_rows_of_a_kind_give_no_calibration(positives):
    labels = (np.arange(1000) < positives).astype(np.uint8)
    good = rows(0.5, 0.0, 1000)
    p = np.stack([good[0], good[0]], axis=1).astype(np.float32)
    found = fit_calibrations(p, np.stack([labels, good[1]], axis=1))
    assert found[0] is None
    assert found[1] == fit_task(p[:, 1].astype(np.float64), good[1])


def test_what_is_measured_is_measured_on_rows_that_the_fit_has_not_seen():
    first_p, first_labels = rows(1.0, 0.0, 10_000)
    later_p, later_labels = rows(1.0, 1.0, 10_000, seed=1)
    found = fit_task(np.append(first_p, later_p), np.append(first_labels, later_labels))
    assert found.pcoc_after == pytest.approx(found.pcoc_before, abs=0.05)
    assert found.pcoc_after < 0.75
    few = np.append(np.zeros(500, np.uint8), np.ones(500, np.uint8))
    assert fit_task(rows(1.0, 0.0, 1000)[0], few).pcoc_after is None
