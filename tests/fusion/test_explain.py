"""An explanation gives the score and the position exactly."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fusion.explain import explanation_table
from fusion.fuse import compile_policy
from fusion.policies import POLICY
from fusion.signals import Candidates, Probabilities

RULES = [
    {"type": "decay", "decay": 0.5, "floor": 0.1},
    {"type": "mmr", "depth": 5},
    {"type": "window_cap"},
    {"type": "explore", "positions": [4]},
    {"type": "pin", "id": "3", "position": 2},
]
FORMULAS = [
    {"formula": "weighted_sum", "weights": {"click": 0.3, "like": 0.7, "hate": -1.0}, "p_up": 0.1},
    {"formula": "power_product", "weights": {"click": 0.3, "like": 0.7}, "p_up": 0.1},
    {"formula": "rank_sum", "weights": {"click": 0.3, "hate": -0.7}},
    {"formula": "rank_product", "weights": {"click": 0.3, "like": 0.7}, "p_up": 2.0},
    {"formula": "expression", "expression": "click - hate*2 + log(like + 0.01) - p_up/3"},
]


def explained(spec, count, seed, gate):
    random = np.random.default_rng(seed)
    p_NT, p_up_N = random.random((count, 3)), random.random(count)
    policy = POLICY.validate_python({**spec, "rules": RULES, "gate": gate})
    compiled = compile_policy(policy, ("click", "like", "hate"), True, ("hate",))
    candidates = Candidates(
        ids=[str(number) for number in range(count)],
        keys={"group": random.integers(0, 4, count)},
        vectors_ND=random.normal(size=(count, 3)),
        seed=str(seed),
    )
    outputs = Probabilities(p_NT, p_NT * p_up_N[:, None], p_up_N)
    return compiled.rank(outputs, 10, candidates), *compiled.explain(outputs, 10, candidates)


@pytest.mark.parametrize("spec", FORMULAS, ids=lambda spec: spec["formula"])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 1000), st.sampled_from(["demote", "drop", None]))
def test_terms_multipliers_and_moves_give_score_and_position_exactly(spec, count, seed, mode):
    gate = mode and {"min_p_up": 0.3, "mode": mode}
    ranked, again, explanation = explained(spec, count, seed, gate)
    np.testing.assert_array_equal(ranked.order_K, again.order_K)
    np.testing.assert_array_equal(ranked.score_N, again.score_N)
    items = explanation.items(range(count))
    for candidate, item in enumerate(items):
        total = 0.0
        for term in item["terms"]:
            total += term["value"]
        assert total == item["total"]
        if item["link"] == "identity":
            assert item["fused"] == total
        if item["link"] == "exp":
            assert item["fused"] == pytest.approx(np.exp(total), rel=1e-15)
        score = item["fused"]
        for multiplier in item["multipliers"]:
            score *= multiplier["factor"]
        assert score == item["score"] == ranked.score_N[candidate]
        place = item["fused_position"]
        for move in item["moves"]:
            assert move["from"] == place
            place = move["to"]
        assert place == item["position"]
    for position, candidate in enumerate(ranked.order_K, start=1):
        assert items[candidate]["position"] == position
    json.dumps(items, allow_nan=False)


def test_the_table_shows_terms_multipliers_and_moves():
    ranked, _, explanation = explained(FORMULAS[0], 12, 1, None)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_table([str(row) for row in ranked.order_K], explanation.items(ranked.order_K)))
    text = console.export_text()
    for part in ("decay group ×", "pin ", "→2", "hate", "fused = total + ceiling"):
        assert part in text


def test_the_table_shows_scores_of_every_size():
    """A product of many probabilities is far below four decimals."""
    ranked, _, explanation = explained({**FORMULAS[1], "weights": {"click": 9.0, "like": 9.0}}, 5, 1, None)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_table([str(row) for row in ranked.order_K], explanation.items(ranked.order_K)))
    assert "0.0000" not in console.export_text()
