"""The formulas against slow loops, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import InputInvalid, NoLatent, UnknownTask
from fusion.formulas import order_by_score, rank_within, squeeze_negative
from fusion.fuse import compile_policy
from fusion.policies import POLICY
from fusion.signals import Probabilities

TASKS = ("click", "like", "hate")
NEGATIVE = ("hate",)
POLICIES = {
    "weighted_sum": {"formula": "weighted_sum", "weights": {"like": 3.0, "click": 1.0}, "p_up": 0.5},
    "with_negative": {"formula": "weighted_sum", "weights": {"like": 1.0, "hate": -5.0}, "p_up": 0.5},
    "power_product": {"formula": "power_product", "weights": {"click": 0.5, "like": 2.0, "hate": -1.0}, "p_up": 0.7},
    "rank_sum": {"formula": "rank_sum", "weights": {"click": 1.0, "like": 2.0}, "p_up": 1.0, "beta": 0.8},
    "rank_sum_negative": {"formula": "rank_sum", "weights": {"click": 1.0, "hate": -2.0}, "smoothing": 2.0},
    "rank_product": {"formula": "rank_product", "weights": {"click": 1.0, "like": 0.3}, "p_up": 1.0},
    "expression": {"formula": "expression", "expression": "(click + 2*like) * p_up**0.5 - hate"},
}
NAMES = sorted(POLICIES)

probability = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32))
rows = st.lists(st.tuples(*[probability] * 4), min_size=1, max_size=12)


def compiled(name: str, signal: str = "joint"):
    policy = POLICY.validate_python({**POLICIES[name], "signal": signal})
    return compile_policy(policy, TASKS, has_p_up=True, negative_tasks=NEGATIVE)


def outputs(rows_of_p) -> Probabilities:
    table = np.array(rows_of_p, dtype=np.float32).reshape(-1, 4)
    return Probabilities(table[:, :3], table[:, :3] * table[:, 3:], table[:, 3])


def slow_scores(name: str, signal: str, probabilities: Probabilities) -> list[float]:
    """One candidate and one task at a time, in the words of the guide."""
    spec = POLICIES[name]
    count = len(probabilities.p_up_N)

    def read(task: str, row: int) -> float:
        if task == "p_up":
            return float(probabilities.p_up_N[row])
        table = probabilities.p_NT if signal == "marginal" or task in NEGATIVE else probabilities.p_joint_NT
        return float(table[row, TASKS.index(task)])

    def rank(task: str, row: int) -> int:
        return 1 + sum(read(task, other) > read(task, row) for other in range(count))

    weights = dict(spec.get("weights", {}))
    if spec.get("p_up"):
        weights["p_up"] = spec["p_up"]
    below = sum(-w for w in weights.values() if w < 0)
    scores = []
    for row in range(count):
        match spec["formula"]:
            case "weighted_sum" | "rank_sum":
                if spec["formula"] == "weighted_sum":
                    total = sum(w * read(task, row) for task, w in weights.items())
                else:
                    beta, smoothing = spec.get("beta", 1.0), spec.get("smoothing", 60.0)
                    total = sum(w / (rank(task, row) ** beta + smoothing) for task, w in weights.items())
                if below and total >= 0:
                    total += 1e-3
                elif below:
                    total = 1e-3 * (total + below) / sum(map(abs, weights.values()))
            case "power_product":
                floor = {"p_up": 1e-30}
                total = math.prod((floor.get(task, 1e-4) + read(task, row)) ** w for task, w in weights.items())
            case "rank_product":
                total = math.prod((rank(task, row) + 1.0) ** -w for task, w in weights.items())
            case "expression":
                total = (read("click", row) + 2 * read("like", row)) * read("p_up", row) ** 0.5 - read("hate", row)
        scores.append(total)
    return scores


@pytest.mark.parametrize("signal", ["joint", "marginal"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(rows)
def test_scores_are_those_of_the_slow_loop(name, signal, rows_of_p):
    probabilities = outputs(rows_of_p)
    expected = slow_scores(name, signal, probabilities)
    np.testing.assert_allclose(compiled(name, signal).rank(probabilities).score_N, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_scores_follow_their_candidates_when_the_request_is_permuted(name, rows_of_p, random):
    permutation = list(range(len(rows_of_p)))
    random.shuffle(permutation)
    straight = compiled(name).rank(outputs(rows_of_p)).score_N
    permuted = compiled(name).rank(outputs([rows_of_p[i] for i in permutation])).score_N
    np.testing.assert_array_equal(straight[permutation], permuted)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(rows)
def test_the_order_is_by_score_then_by_input(name, rows_of_p):
    ranked = compiled(name).rank(outputs(rows_of_p))
    expected = sorted(range(len(rows_of_p)), key=lambda row: (-ranked.score_N[row], row))
    assert ranked.order_K.tolist() == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 2), probability, st.integers(0, 11))
def test_a_higher_probability_never_lowers_a_score_where_its_weight_is_positive(name, rows_of_p, task, raised, row):
    row %= len(rows_of_p)
    raised = max(raised, rows_of_p[row][task])
    sign = -1 if TASKS[task] in NEGATIVE else 1
    higher = [list(values) for values in rows_of_p]
    higher[row][task] = raised
    before = compiled(name, "marginal").rank(outputs(rows_of_p)).score_N[row]
    after = compiled(name, "marginal").rank(outputs(higher)).score_N[row]
    assert sign * (after - before) >= -1e-15


@settings(max_examples=50, deadline=None)
@given(rows)
def test_negative_totals_lie_below_every_other_and_keep_their_order(rows_of_p):
    probabilities = outputs(rows_of_p)
    score_N = compiled("with_negative", "marginal").rank(probabilities).score_N
    p_NT, p_up_N = probabilities.p_NT.astype(float), probabilities.p_up_N.astype(float)
    total_N = p_NT[:, 1] - 5.0 * p_NT[:, 2] + 0.5 * p_up_N
    by_total = np.argsort(total_N, kind="stable")
    assert (np.diff(score_N[by_total]) >= 0).all()
    assert (score_N >= 0).all()
    if (total_N < 0).any() and (total_N >= 0).any():
        assert score_N[total_N < 0].max() < score_N[total_N >= 0].min()


@given(st.floats(0.01, 1000), st.floats(1e-6, 1), st.floats(1e-18, 1e-9))
def test_no_rounding_lifts_a_negative_total_to_one_of_0(weight, ceiling, below):
    """With negative weights only, the largest negative total would come out as the ceiling, or a bit above it."""
    score_N = squeeze_negative(np.array([-below, 0.0]), weight, weight, ceiling)
    assert 0 <= score_N[0] < score_N[1]


@settings(max_examples=25, deadline=None)
@given(rows, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_scaling_all_weights_scales_a_weighted_sum_and_keeps_the_order(rows_of_p, factor):
    spec = POLICIES["weighted_sum"]
    weights = {task: weight * factor for task, weight in spec["weights"].items()}
    scaled = POLICY.validate_python({**spec, "weights": weights, "p_up": spec["p_up"] * factor})
    one = compiled("weighted_sum").rank(outputs(rows_of_p))
    other = compile_policy(scaled, TASKS, has_p_up=True).rank(outputs(rows_of_p))
    np.testing.assert_array_equal(one.score_N * factor, other.score_N)
    np.testing.assert_array_equal(one.order_K, other.order_K)


@settings(max_examples=25, deadline=None)
@given(rows)
def test_ranks_do_not_change_under_a_rising_transform_of_the_probabilities(rows_of_p):
    probabilities = outputs(rows_of_p)
    wide = [array.astype(np.float64) for array in (probabilities.p_NT, probabilities.p_joint_NT, probabilities.p_up_N)]
    squashed = Probabilities(wide[0] / 2, wide[1] / 4, wide[2] / 8)
    for name in ("rank_sum", "rank_product"):
        before, after = compiled(name).rank(probabilities), compiled(name).rank(squashed)
        np.testing.assert_array_equal(before.score_N, after.score_N)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_probabilities_of_0_and_1_give_finite_scores(name, value):
    assert np.isfinite(compiled(name).rank(outputs([[value] * 4] * 3)).score_N).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_candidates_give_an_empty_order(name):
    ranked = compiled(name).rank(outputs([]))
    assert (ranked.order_K.size, ranked.score_N.size) == (0, 0)


def test_top_k_is_the_head_of_the_whole_order():
    probabilities = outputs(np.random.default_rng(0).random((50, 4)).tolist())
    whole = compiled("weighted_sum").rank(probabilities).order_K
    assert compiled("weighted_sum").rank(probabilities, top_k=7).order_K.tolist() == whole[:7].tolist()


def test_an_absent_task_is_refused_by_name():
    policy = POLICY.validate_python(POLICIES["weighted_sum"])
    with pytest.raises(UnknownTask, match=r"weights\.like: .* want one of click, share"):
        compile_policy(policy, ("click", "share"), has_p_up=True)


def test_an_unknown_expression_name_is_refused_by_name():
    policy = POLICY.validate_python({"formula": "expression", "expression": "click + shares"})
    with pytest.raises(UnknownTask, match="expression name 'shares'"):
        compile_policy(policy, TASKS, has_p_up=True)


def test_an_attribute_that_hides_a_task_is_refused():
    policy = POLICY.validate_python(
        {"formula": "expression", "expression": "click + like", "attributes": {"like": 0.0}}
    )
    with pytest.raises(UnknownTask, match=r"attributes\.like: got a task of the model"):
        compile_policy(policy, TASKS, has_p_up=True)


@pytest.mark.parametrize(
    ("patch", "thing"),
    [({}, "signal joint"), ({"signal": "marginal"}, "p_up"), ({"signal": "marginal", "p_up": 0.0}, "gate.min_p_up")],
)
def test_a_model_without_latent_refuses_joint_p_up_and_gate(patch, thing):
    spec = {**POLICIES["weighted_sum"], "gate": {"min_p_up": 0.1}, **patch}
    with pytest.raises(NoLatent, match=thing):
        compile_policy(POLICY.validate_python(spec), TASKS, has_p_up=False)


@pytest.mark.parametrize(
    ("outputs_of_model", "message"),
    [
        (Probabilities(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2)), r"p_NT: got shape \[2, 2\], want \[N, 3\]"),
        (Probabilities(np.zeros((2, 3)), None, np.zeros(2)), "p_joint_NT: got None"),
        (Probabilities(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3)), "p_up_N: got shape"),
        (Probabilities(np.zeros((2, 3)), np.full((2, 3), np.nan), np.zeros(2)), "score of candidate 0: got nan"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(outputs_of_model, message):
    with pytest.raises(InputInvalid, match=message):
        compiled("weighted_sum").rank(outputs_of_model)


SUMS = {
    "three tasks": {"weights": {"like": 3.0, "click": 1.1, "hate": 0.7}},
    "one task": {"weights": {"like": 1.0}},
    "P(UP) alone": {"weights": {"like": 0.0}, "p_up": 0.3},
    "negative": {"weights": {"like": 1.0, "click": 0.1, "hate": -5.0}, "p_up": 0.5},
    "negative alone": {"weights": {"hate": -3.0}, "negative_ceiling": 0.01},
}


@settings(max_examples=100, deadline=None)
@given(rows=rows, name=st.sampled_from(sorted(SUMS)), signal=st.sampled_from(["joint", "marginal"]))
def test_the_compiled_weighted_sum_is_the_sum_to_the_bit(score_loops, rows, name, signal):
    policy = POLICY.validate_python({"formula": "weighted_sum", **SUMS[name], "signal": signal})
    of_model = outputs(rows)
    one_pass = compile_policy(policy, TASKS, has_p_up=True, negative_tasks=NEGATIVE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.loops.compiled", None)
        by_terms = compile_policy(policy, TASKS, has_p_up=True, negative_tasks=NEGATIVE)
    assert one_pass.formula.in_one_pass(of_model) is not None and by_terms.formula.in_one_pass is None
    assert one_pass.score(of_model).tobytes() == by_terms.score(of_model).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_compiled_weighted_sum_leaves_what_is_not_finite(score_loops, value):
    of_model = outputs([[0.5] * 4, [0.5, value, 0.5, 0.5]])
    assert compiled("with_negative").formula.in_one_pass(of_model) is None
    with pytest.raises(InputInvalid, match="score of candidate 1: got"):
        compiled("with_negative").rank(of_model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, (3,), (False,), (1.0,), None, None), "column: found 3, expected below 3"),
        ((3, (-1,), (False,), (1.0,), None, None), "column: found -1"),
        ((3, (), (), (), None, None), "terms: found none"),
        ((3, (0, 1), (False,), (1.0, 2.0), None, None), "zip"),
        ((2, (0,), (False,), (1.0,), None, None), "p: found 3 tasks, expected 2"),
        ((3, (0,), (True,), (1.0,), None, None), "p_joint: found another shape"),
        ((3, (0,), (False,), (1.0,), 1.0, None), "p_up: found another number of rows"),
    ],
)
def test_the_compiled_weighted_sum_refuses_what_does_not_fit(score_loops, arguments, message):
    p_NT = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        score_loops.WeightedSum(*arguments).scores(p_NT, p_NT[1:], p_NT[1:, 0])


@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 1e-40, 0.25, 0.3, 0.5, 1.0, 1e30]), min_size=4, max_size=4)),
    exact=st.booleans(),
)
def test_ranks_are_one_more_than_the_number_of_larger_signals(rows, exact):
    """Exact: numbers of single precision, which are ranked by their bits; else such that differ by less than that."""
    signals_KN = np.array(rows, dtype=np.float32).astype(np.float64).reshape(-1, 4).T
    signals_KN += 0.0 if exact else np.arange(signals_KN.shape[1]) % 2 * 1e-12
    expected = [[1 + sum(other > own for other in signal_N) for own in signal_N] for signal_N in signals_KN]
    np.testing.assert_array_equal(rank_within(signals_KN), np.array(expected, dtype=np.intp).reshape(signals_KN.shape))


@given(
    scores=st.lists(st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 0.5, 1.0, 5e-324, -5e-324]), max_size=300)
)
def test_the_compiled_order_is_that_of_a_stable_sort(score_loops, scores):
    score_N = np.array(scores, dtype=np.float64)
    order_N = score_loops.order_by_score(score_N)
    assert order_N.tolist() == sorted(range(len(scores)), key=lambda row: -scores[row])
    assert order_N.dtype == np.intp


def test_the_compiled_order_is_that_of_numpy_where_ties_are_many(score_loops):
    rng = np.random.default_rng(3)
    for rows in (1, 255, 256, 257, 3000):
        score_N = rng.choice([0.0, -0.0, 1.0, 0.25, -3.0, np.inf, -np.inf], rows)
        assert score_loops.order_by_score(score_N).tolist() == (-score_N).argsort(kind="stable").tolist()


def test_the_compiled_order_leaves_what_is_no_number(score_loops):
    score_N = np.array([0.5, np.nan, 1.0])
    assert score_loops.order_by_score(score_N) is None
    assert order_by_score(score_N).tolist() == [2, 0, 1]
