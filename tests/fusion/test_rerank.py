"""Gate and rules against slow loops, and what must hold whatever the request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import InputInvalid
from fusion.fuse import compile_policy
from fusion.policies import POLICY
from fusion.signals import Candidates, Probabilities

ids_of = [f"i{number}" for number in range(60)].__getitem__


def ranker(*rules, gate=None):
    spec = {"formula": "weighted_sum", "signal": "marginal", "weights": {"click": 1.0}, "rules": rules, "gate": gate}
    return compile_policy(POLICY.validate_python(spec), ("click",), has_p_up=True)


def outputs(scores, p_up=None):
    p_NT = np.array(scores, dtype=np.float64).reshape(-1, 1)
    return Probabilities(p_NT, p_NT, np.ones(len(p_NT)) if p_up is None else np.array(p_up))


request = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(0, 1, width=16), min_size=count, max_size=count),
        st.lists(st.integers(0, 4), min_size=count, max_size=count),
        st.lists(st.integers(0, 2), min_size=count, max_size=count),
    )
)


def by_score(scores):
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


@settings(max_examples=60, deadline=None)
@given(request, st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.25]))
def test_decay_is_that_of_the_slow_loop(drawn, decay, floor):
    scores, groups, _ = drawn
    seen: dict[int, int] = {}
    expected = list(scores)
    for row in by_score(scores):
        k = seen.get(groups[row], 0)
        expected[row] = scores[row] * ((1 - floor) * decay**k + floor)
        seen[groups[row]] = k + 1
    rule = {"type": "decay", "decay": decay, "floor": floor}
    ranked = ranker(rule).rank(outputs(scores), candidates=Candidates(keys={"group": groups}))
    np.testing.assert_allclose(ranked.score_N, expected, rtol=1e-14)  # numpy's power may differ by one bit
    assert ranked.order_K.tolist() == by_score(ranked.score_N)


def slow_caps(order, rules, keys):
    """At each position the best candidate that breaks no rule, else the best one left."""
    left, placed, broken = list(order), [], 0
    depth = max(rule.get("depth", 100) if rule["type"] == "window_cap" else rule["first"] for rule in rules)
    while left and len(placed) < depth:

        def allowed(row):
            for rule in rules:
                mine = keys[rule["key"]]
                if rule["type"] == "window_cap" and len(placed) < rule.get("depth", 100):
                    near = placed[max(0, len(placed) - rule["window"] + 1) :]
                elif rule["type"] == "first_cap" and len(placed) < rule["first"]:
                    near = placed
                else:
                    continue
                if sum(mine[other] == mine[row] for other in near) >= rule["max"]:
                    return False
            return True

        row = next(filter(allowed, left), None)
        if row is None:
            row, broken = left[0], broken + 1
        left.remove(row)
        placed.append(row)
    return placed + left, broken


@settings(max_examples=100, deadline=None)
@given(
    request,
    st.integers(1, 2),
    st.integers(3, 5),
    st.integers(1, 3),
    st.integers(4, 12),
    st.sampled_from([6, 100]),
)
def test_caps_are_those_of_the_slow_loop(drawn, most, window, most_first, first, depth):
    scores, groups, categories = drawn
    keys = {"group": groups, "category": categories}
    rules = [
        {"type": "window_cap", "key": "group", "max": most, "window": window, "depth": depth},
        {"type": "first_cap", "key": "category", "max": most_first, "first": first},
    ]
    ranked = ranker(*rules).rank(outputs(scores), candidates=Candidates(keys=keys))
    assert (ranked.order_K.tolist(), ranked.broken_caps) == slow_caps(by_score(scores), rules, keys)


@settings(max_examples=60, deadline=None)
@given(request, st.floats(0, 1), st.sampled_from(["demote", "drop"]))
def test_the_gate_puts_low_p_up_last_or_out_and_keeps_both_orders(drawn, threshold, mode):
    scores, groups, _ = drawn
    p_up = [group / 4 for group in groups]
    ranked = ranker(gate={"min_p_up": threshold, "mode": mode}).rank(outputs(scores, p_up))
    high = [row for row in by_score(scores) if p_up[row] >= threshold]
    low = [row for row in by_score(scores) if p_up[row] < threshold]
    assert ranked.order_K.tolist() == high + (low if mode == "demote" else [])


@settings(max_examples=40, deadline=None)
@given(request, st.sampled_from(["demote", "drop"]))
def test_no_rule_but_a_pin_lifts_a_gated_candidate(drawn, mode):
    scores, groups, categories = drawn
    p_up = [0.9 if category else 0.1 for category in categories]
    rules = [
        {"type": "decay", "floor": 0.0},
        {"type": "mmr", "depth": 10},
        {"type": "window_cap"},
        {"type": "explore", "positions": [1, 3], "pool": 100},
    ]
    vectors = np.random.default_rng(0).normal(size=(len(scores), 3))
    candidates = Candidates(keys={"group": groups}, vectors_ND=vectors, seed="r")
    order = ranker(*rules, gate={"min_p_up": 0.5, "mode": mode}).rank(outputs(scores, p_up), None, candidates).order_K
    gated = [p_up[row] < 0.5 for row in order]
    assert gated == sorted(gated)
    assert len(order) == (len(scores) if mode == "demote" else sum(p >= 0.5 for p in p_up))


@pytest.mark.parametrize("kind", ["mmr", "dpp"])
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10_000), st.sampled_from([0.3, 0.7]))
def test_diversity_is_that_of_the_slow_loop(kind, count, seed, relevance):
    random = np.random.default_rng(seed)
    scores, vectors = random.random(count), random.normal(size=(count, 4))
    rule = {"type": kind, "relevance": relevance, "depth": 8, "pool": 15}
    order = ranker(rule).rank(outputs(scores), candidates=Candidates(vectors_ND=vectors)).order_K.tolist()
    pool = by_score(scores)[:15]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    low, high = min(scores[pool]), max(scores[pool])
    scaled = {row: (scores[row] - low) / (high - low) if high > low else 0.0 for row in pool}
    chosen: list[int] = []
    for _ in range(min(8, len(pool))):
        left = [row for row in pool if row not in chosen]
        if kind == "mmr":
            value = {
                row: relevance * scaled[row]
                - (1 - relevance) * max((float(unit[row] @ unit[other]) for other in chosen), default=0.0)
                for row in left
            }
        else:
            quality = {row: np.exp(relevance / (2 * (1 - relevance)) * scaled[row]) for row in pool}

            def volume(rows, quality=quality):
                kernel = [[quality[a] * quality[b] * (1 + unit[a] @ unit[b]) / 2 for b in rows] for a in rows]
                return np.linalg.det(np.array(kernel))

            base = volume(chosen) if chosen else 1.0
            value = {row: volume([*chosen, row]) / base for row in left}
            if max(value.values()) < 1e-8:
                break
        chosen.append(max(left, key=value.__getitem__))
    assert order[: len(chosen)] == chosen
    assert order[len(chosen) :] == [row for row in by_score(scores) if row not in chosen]


@settings(max_examples=40, deadline=None)
@given(request, st.integers(0, 100))
def test_exploration_changes_slots_only_and_repeats_for_a_seed(drawn, seed):
    scores, _, _ = drawn
    policy = ranker({"type": "explore", "positions": [2, 5], "rate": 0.5, "pool": 20})
    candidates = Candidates(seed=f"r{seed}")
    first, second = (policy.rank(outputs(scores), candidates=candidates) for _ in range(2))
    np.testing.assert_array_equal(first.order_K, second.order_K)
    others = [row for row in first.order_K.tolist() if first.propensity_N[row] == 1.0]
    assert others == [row for row in by_score(scores) if row in others]
    assert sorted(first.order_K.tolist()) == list(range(len(scores)))


def test_propensities_are_the_frequencies_of_the_draws():
    policy = ranker({"type": "explore", "positions": [3], "rate": 0.6, "pool": 6})
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    counts, propensity = {}, {}
    for request_number in range(4000):
        ranked = policy.rank(outputs(scores), candidates=Candidates(seed=str(request_number)))
        shown = int(ranked.order_K[2])
        counts[shown] = counts.get(shown, 0) + 1
        propensity[shown] = ranked.propensity_N[shown]
    assert propensity == pytest.approx({2: 0.55, 3: 0.15, 4: 0.15, 5: 0.15})
    assert {row: count / 4000 for row, count in counts.items()} == pytest.approx(propensity, abs=0.03)


def test_pins_stand_where_they_are_told_whatever_else_moves():
    scores = np.linspace(1, 0, 20)
    attribute = np.zeros(20)
    attribute[[4, 11]] = 1.0
    rules = [
        {"type": "pin", "id": "i0", "position": 5},
        {"type": "pin", "id": "i15", "position": 1},
        {"type": "pin", "attribute": "sponsored", "position": 3},
        {"type": "pin", "id": "gone", "position": 7},
    ]
    candidates = Candidates(ids=[ids_of(n) for n in range(20)], attributes={"sponsored": attribute})
    ranked = ranker(*rules).rank(outputs(scores), candidates=candidates)
    assert ranked.order_K[[0, 2, 4]].tolist() == [15, 4, 0]
    assert ranked.skipped == ("pin gone",)
    assert sorted(ranked.order_K.tolist()) == list(range(20))


def test_a_pin_lifts_a_demoted_candidate_but_not_a_dropped_one():
    pin = {"type": "pin", "id": "i1", "position": 1}
    for mode, expected in (("demote", [1, 0, 2]), ("drop", [0, 2])):
        policy = ranker(pin, gate={"min_p_up": 0.5, "mode": mode})
        candidates = Candidates(ids=["i0", "i1", "i2"])
        assert policy.rank(outputs([0.9, 0.8, 0.7], [1, 0, 1]), candidates=candidates).order_K.tolist() == expected


def test_rules_without_data_are_skipped_by_name_and_the_order_stays():
    rules = [{"type": "decay"}, {"type": "mmr"}, {"type": "window_cap", "key": "author"}]
    ranked = ranker(*rules).rank(outputs([0.1, 0.9, 0.5]))
    assert ranked.order_K.tolist() == [1, 2, 0]
    assert ranked.skipped == ("decay group", "mmr", "window_cap author")


def test_an_attribute_that_no_candidate_has_is_named():
    spec = {"formula": "expression", "expression": "click - age/48", "attributes": {"age": 0.0}}
    compiled = compile_policy(POLICY.validate_python(spec), ("click",), True)
    assert compiled.rank(outputs([0.1, 0.2])).skipped == ("attribute age",)
    aged = Candidates(attributes={"age": np.array([1.0, 2.0])})
    assert compiled.rank(outputs([0.1, 0.2]), candidates=aged).skipped == ()


def test_candidates_without_a_key_are_never_alike():
    candidates = Candidates(keys={"group": [None, None, "a", "a"]})
    ranked = ranker({"type": "decay", "decay": 0.5, "floor": 0.0}).rank(outputs([1, 0.9, 0.8, 0.7]), None, candidates)
    np.testing.assert_array_equal(ranked.score_N, [1, 0.9, 0.8, 0.35])


@pytest.mark.parametrize(
    ("rule", "candidates", "message"),
    [
        ({"type": "decay"}, Candidates(keys={"group": [1]}), "key 'group': got 1 values, want 2"),
        ({"type": "mmr"}, Candidates(vectors_ND=np.ones((3, 2))), "vectors_ND: got shape"),
        ({"type": "pin", "id": "a", "position": 1}, Candidates(ids=["a"]), "ids: got 1 ids, want 2"),
    ],
)
def test_data_of_another_length_is_refused(rule, candidates, message):
    with pytest.raises(InputInvalid, match=message):
        ranker(rule).rank(outputs([0.1, 0.2]), candidates=candidates)


def test_a_policy_says_what_it_reads_of_the_candidates():
    rules = [{"type": "decay"}, {"type": "dpp"}, {"type": "first_cap", "key": "category", "max": 1}]
    needs = ranker(*rules, {"type": "pin", "attribute": "sponsored", "position": 1}).needs
    assert needs.keys == {"group", "category"}
    assert (needs.attributes, needs.ids, needs.vectors) == ({"sponsored"}, False, True)
