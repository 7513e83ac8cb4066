"""Calibration: σ(logit / temperature + offset), joint probabilities in step with marginal ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.calibration import Calibration, calibrate, calibrate_joint
from fusion.errors import InputInvalid
from fusion.fuse import compile_policy
from fusion.policies import POLICY
from fusion.signals import Probabilities

probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=10).map(np.array)
calibrations = st.builds(Calibration, st.floats(0.2, 5), st.floats(-3, 3))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.999), calibrations)
def test_it_is_the_formula(p, calibration):
    expected = 1 / (1 + math.exp(-(math.log(p / (1 - p)) / calibration.temperature + calibration.offset)))
    assert calibrate(np.array([p]), calibration)[0] == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(probabilities, calibrations)
def test_it_keeps_the_order_and_the_ends(p_N, calibration):
    with np.errstate(all="raise", under="ignore"):
        calibrated = calibrate(p_N, calibration)
    assert (np.diff(calibrated[np.argsort(p_N)]) >= -1e-15).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    assert (calibrated[p_N == 0] == 0).all() and (calibrated[p_N == 1] == 1).all()


@settings(max_examples=50, deadline=None)
@given(probabilities, st.floats(0, 1), calibrations)
def test_a_joint_probability_stays_below_its_marginal_and_keeps_its_share(p_N, share, calibration):
    joint_N = calibrate_joint(p_N * share, p_N, calibration)
    np.testing.assert_allclose(joint_N, calibrate(p_N, calibration) * share, atol=1e-12)


def test_only_policies_that_ask_for_it_are_calibrated():
    p_NT = np.array([[0.2, 0.5]])
    outputs = Probabilities(p_NT)
    known = {"click": Calibration(1.0, 1.0)}
    spec = {"formula": "weighted_sum", "signal": "marginal", "weights": {"click": 1.0, "like": 1.0}}
    scores = [
        compile_policy(POLICY.validate_python({**spec, "calibrate": ask}), ("click", "like"), False, (), known).score(
            outputs
        )[0]
        for ask in (False, True)
    ]
    raised = 1 / (1 + math.exp(-(math.log(0.25) + 1)))
    assert scores == pytest.approx([0.7, raised + 0.5])


@pytest.mark.parametrize(("temperature", "offset"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_calibration_that_makes_no_probabilities_is_refused(temperature, offset):
    with pytest.raises(InputInvalid, match="calibration: got temperature"):
        Calibration(temperature, offset)
