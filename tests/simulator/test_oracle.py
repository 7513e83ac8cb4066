import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from simulator.errors import TruthInvalid
from simulator.logs import Simulation, write_logs
from simulator.oracle import Truth, auc, oracle_auc, read_truth, recovery
from simulator.scenario import read_scenario


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_that_of_a_trusted_implementation_with_ties(rows):
    score, state = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if state.all() or not state.any():
        assert np.isnan(auc(score, state))
    else:
        assert roc_auc_score(state, score) == pytest.approx(auc(score, state))


def test_auc_of_no_rows_is_nan():
    assert np.isnan(auc(np.array([]), np.array([])))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    out = tmp_path_factory.mktemp("oracle") / "log"
    facts = write_logs(Simulation(read_scenario("default"), 50_000, 2), out)
    return facts, read_truth(out), out


def test_the_written_oracle_auc_is_that_of_the_truth_read_back(simulated):
    facts, truth, _ = simulated
    assert facts["oracle_auc"] == pytest.approx(oracle_auc(truth), abs=1e-4)
    assert roc_auc_score(truth.z_N, truth.u_N) == pytest.approx(oracle_auc(truth))


def test_the_truth_recovers_itself(simulated):
    _, truth, _ = simulated
    figures = recovery(truth.u_N, truth)
    assert figures.auc == figures.oracle_auc
    assert figures.brier == figures.oracle_brier
    assert figures.correlation == pytest.approx(1)
    assert figures.ece < 0.02


def test_a_level_that_is_off_shows_in_calibration_and_not_in_auc(simulated):
    _, truth, _ = simulated
    figures = recovery(truth.u_N / 2, truth)
    assert figures.auc == figures.oracle_auc
    assert figures.ece > 0.15
    assert figures.mean_p_up == pytest.approx(figures.mean_u / 2)


def test_a_score_that_leans_on_habits_shows_it(simulated):
    _, truth, _ = simulated
    rank = truth.habit_N.argsort().argsort() / len(truth.habit_N)
    assert recovery(rank, truth).habit_correlation > 0.8
    assert abs(recovery(truth.u_N, truth).habit_correlation) < 0.1


@pytest.mark.parametrize("p", [np.zeros(3), np.full(2, np.nan), np.array([0.5, 1.5])])
def test_what_is_not_a_probability_for_each_row_is_refused(p):
    truth = Truth(np.array([0.2, 0.7]), np.array([0, 1], dtype=np.int8), np.array([0.0, 1.0]))
    with pytest.raises(TruthInvalid):
        recovery(p, truth)


def test_a_truncated_truth_is_refused(simulated, tmp_path):
    data = (simulated[2] / "truth.parquet").read_bytes()
    (tmp_path / "truth.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(TruthInvalid, match=r"truth\.parquet"):
        read_truth(tmp_path)
