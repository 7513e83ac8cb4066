import numpy as np
import pytest

from loadtest.compare import FIGURES, compare, measure_rounds, sign_flip_p_value
from loadtest.errors import BaselineInvalid, PlanInvalid


def rounds(size, seed, **factors):
    """Rounds that share the machine's ups and downs (a factor of two), with 2 % noise of their own."""
    machine = np.exp(np.random.default_rng(0).normal(0, 0.7, size))
    noise = np.random.default_rng(seed).normal(1, 0.02, (size, len(FIGURES)))
    base = {"p50_ms": 5 * machine, "p99_ms": 20 * machine, "achieved_rate": np.full(size, 100.0)}
    return [
        {name: float(base[name][i] * factors.get(name, 1) * noise[i, j]) for j, name in enumerate(FIGURES)}
        for i in range(size)
    ]


def verdicts(comparison):
    return {ratio.figure: ratio.verdict for ratio in comparison.ratios}


def test_a_change_far_below_the_machines_noise_is_seen_in_pairs():
    found = compare(rounds(10, 1, p99_ms=1.1), rounds(10, 2))
    assert verdicts(found) == {
        "p50_ms": "no difference shown",
        "p99_ms": "worse",
        "achieved_rate": "no difference shown",
    }
    assert found.regressed
    p99 = found.ratios[1]
    assert p99.low < 1.1 < p99.high
    assert p99.mean == pytest.approx(1.1, rel=0.03)


def test_lower_latency_and_higher_rate_are_better_and_no_regression():
    found = compare(rounds(10, 1, p50_ms=0.8, achieved_rate=1.2), rounds(10, 2))
    assert verdicts(found)["p50_ms"] == verdicts(found)["achieved_rate"] == "better"
    assert not found.regressed


def test_a_lower_rate_is_worse():
    assert verdicts(compare(rounds(10, 1, achieved_rate=0.8), rounds(10, 2)))["achieved_rate"] == "worse"


def test_a_change_within_the_tolerance_is_not_a_regression():
    found = compare(rounds(12, 1, p99_ms=1.05), rounds(12, 2), tolerance=0.2)
    assert not found.regressed


def test_equal_services_are_called_different_in_about_a_twentieth_of_trials():
    trials = [compare(rounds(8, 2 * i, p99_ms=1), rounds(8, 2 * i + 1), tolerance=0.0) for i in range(100)]
    wrong = sum(verdicts(trial)["p99_ms"] != "no difference shown" for trial in trials)
    assert wrong <= 12


def test_the_sign_flip_test_is_exact():
    assert sign_flip_p_value(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert sign_flip_p_value(np.array([1.0, -1.0, 0.0])) == 1
    assert sign_flip_p_value(np.ones(20)) < 0.01


def test_rounds_are_made_in_alternating_order():
    order = []

    def side(name):
        def run(number):
            order.append(f"{name}{number}")
            return {"round": float(number)}

        return run

    ours, theirs = measure_rounds(side("A"), side("B"), 4)
    assert order == ["B0", "A0", "A1", "B1", "B2", "A2", "A3", "B3"]
    assert ours == theirs == [{"round": float(i)} for i in range(4)]


def test_too_few_rounds_are_refused():
    with pytest.raises(PlanInvalid):
        measure_rounds(lambda number: {}, None, 2)


@pytest.mark.parametrize("broken", [{}, {"p50_ms": float("nan")}, {"p50_ms": "1"}, {"p50_ms": None}, {"p50_ms": 0}])
def test_a_round_without_a_positive_figure_is_refused_by_number(broken):
    bad = rounds(4, 1)
    bad[2] = {**bad[2], "p50_ms": None, **broken}
    with pytest.raises(BaselineInvalid, match="reference: round 3: p50_ms"):
        compare(rounds(4, 2), bad)


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(BaselineInvalid, match="4 and 5 rounds"):
        compare(rounds(4, 1), rounds(5, 1))
