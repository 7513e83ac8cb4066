"""Assignment: sticky, uniform, independent, exclusive, and the growthbook library's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from growthbook.common_types import EvaluationContext, GlobalContext, Options, StackContext, UserContext
from growthbook.core import run_experiment
from scipy.stats import chi2_contingency, chisquare

from fusion.errors import ForceRefused, ForceUnknown
from fusion.experiments import Assigner, Exposure, growthbook_experiment

USERS = [f"user-{number}" for number in range(200_000)]
MANY, FEW = USERS[:80_000], USERS[:20_000]


def assigned(assigner, users=FEW, context=None):
    """User → layer → (experiment, variant)."""
    return {
        user: {exposure.layer: (exposure.experiment, exposure.variant) for exposure in assigner.assign(user, context)}
        for user in users
    }


@pytest.fixture
def two_layers(make_config, experiment):
    uneven = [{"name": f"v{index}", "weight": weight} for index, weight in enumerate((0.5, 0.3, 0.2))]
    return make_config(
        layers=[
            {"name": "ranking", "experiments": [experiment("a", variants=uneven)]},
            {"name": "rules", "experiments": [experiment("b", slice=[0, 0.5]), experiment("c", slice=[0.5, 1])]},
        ]
    )


def test_users_are_dealt_by_weight_and_layers_independently(two_layers):
    pairs = Counter()
    for placed in assigned(Assigner(two_layers), USERS).values():
        pairs[placed["ranking"][1], placed["rules"][1]] += 1
    table = [[pairs[f"v{row}", column] for column in ("b_a", "b_b", "c_a", "c_b")] for row in range(3)]
    rows = [sum(row) for row in table]
    columns = [sum(column) for column in zip(*table, strict=True)]
    assert chisquare(rows, [100_000, 60_000, 40_000]).pvalue > 0.001
    assert chisquare(columns).pvalue > 0.001
    assert chi2_contingency(table).pvalue > 0.001


def test_nobody_is_in_two_experiments_of_a_layer(two_layers):
    for exposures in map(Assigner(two_layers).assign, FEW):
        layers = [exposure.layer for exposure in exposures]
        assert len(layers) == len(set(layers))


def test_a_ramp_moves_nobody_between_variants(make_config, experiment):
    before: dict[str, str] = {}
    for traffic in (0.1, 0.5, 1.0):
        config = make_config(layers=[{"name": "ranking", "experiments": [experiment("a", traffic=traffic)]}])
        now = {user: placed["ranking"][1] for user, placed in assigned(Assigner(config), MANY).items() if placed}
        assert {user: now.get(user) for user in before} == before
        assert abs(len(now) / len(MANY) - traffic) < 0.008
        before = now


def test_another_phase_deals_users_anew(make_config, experiment):
    first, second = (
        assigned(Assigner(make_config(layers=[{"name": "r", "experiments": [experiment("a", phase=phase)]}])))
        for phase in (1, 2)
    )
    moved = sum(first[user] != second[user] for user in FEW) / len(FEW)
    assert abs(moved - 0.5) < 0.02


def test_new_weights_without_a_new_phase_would_move_users(make_config, experiment):
    uneven = [{"name": "a_a", "weight": 0.1}, {"name": "a_b", "weight": 0.9}]
    first, second = (
        assigned(Assigner(make_config(layers=[{"name": "r", "experiments": [experiment("a", variants=variants)]}])))
        for variants in (None, uneven)
    )
    assert abs(sum(first[user] != second[user] for user in FEW) / len(FEW) - 0.4) < 0.02


def test_variants_are_equal_in_another_process_with_another_hash_seed(two_layers, tmp_path):
    file = tmp_path / "fusion.yaml"
    file.write_text(two_layers.model_dump_json(exclude_unset=True))
    script = (
        "import sys; from pathlib import Path; from fusion.policy import load_config\n"
        "from fusion.experiments import Assigner; assigner = Assigner(load_config(Path(sys.argv[1])))\n"
        "import hashlib; digest = hashlib.sha256()\n"
        "for n in range(20_000): digest.update(repr([e.variant for e in assigner.assign(f'user-{n}')]).encode())\n"
        "print(digest.hexdigest())"
    )
    answers = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, str(file)]
        answers.add(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assigner = Assigner(two_layers)
    here = hashlib.sha256()
    for user in FEW:
        here.update(repr([exposure.variant for exposure in assigner.assign(user)]).encode())
    assert answers == {f"{here.hexdigest()}\n"}


def test_assignment_is_what_the_library_gives_with_filters(make_config, experiment):
    uneven = [{"name": f"v{index}", "weight": weight} for index, weight in enumerate((0.5, 0.3, 0.2))]
    odd = {"$or": [{"tab": {"$gte": 2}}, {"country": {"$regex": "^D"}}], "$not": {"age": {"$exists": True}}}
    config = make_config(
        layers=[
            {"name": "r", "experiments": [experiment("a", variants=uneven, traffic=0.7, when=odd)]},
            {"name": "s", "experiments": [experiment("b", slice=[0, 0.5]), experiment("c", slice=[0.5, 1], when={})]},
            {"name": "t", "experiments": [experiment("d", status="stopped", slice=[0, 0.5])]},
            {"name": "u", "salt": "other", "experiments": [experiment("e", when={"id": "user-7"}, phase=3)]},
        ]
    )
    contexts = [{}, {"tab": 1, "country": "DE"}, {"tab": 2, "age": 3}, {"tab": "2"}, {"tab": None, "country": ["DE"]}]
    assigner = Assigner(config)
    library = GlobalContext(options=Options())
    for number, user in enumerate(USERS[:2000]):
        expected = []
        attributes = contexts[number % len(contexts)]
        context = EvaluationContext(UserContext(attributes={**attributes, "id": user}), library, StackContext())
        for layer in config.layers:
            for item in layer.experiments:
                result = run_experiment(growthbook_experiment(layer, item), None, context)
                if result.inExperiment:
                    variant = item.variants[result.value].name
                    expected.append(Exposure(layer.name, item.name, item.phase, variant))
        assert assigner.assign(user, attributes) == tuple(expected)


def test_held_out_users_are_in_no_experiment_and_the_others_do_not_move(make_config, experiment):
    layers = [{"name": "ranking", "experiments": [experiment("a")]}]
    without = assigned(Assigner(make_config(layers=layers)))
    held = assigned(Assigner(make_config(layers=layers, holdout={"share": 0.1})))
    out = [user for user, placed in held.items() if not placed]
    assert abs(len(out) / len(FEW) - 0.1) < 0.01
    assert all(held[user] == without[user] for user in FEW if held[user])


def test_only_users_whose_context_meets_the_condition_are_in(make_config, experiment):
    layers = [{"name": "r", "experiments": [experiment("a", when={"country": {"$in": ["DE"]}, "age": {"$gte": 18}})]}]
    assigner = Assigner(make_config(layers=layers))
    assert all(assigned(assigner, FEW[:100], {"country": "DE", "age": 20}).values())
    for context in ({"country": "FR", "age": 20}, {"country": "DE", "age": 3}, {}, None):
        assert not any(assigned(assigner, FEW[:100], context).values())


@pytest.mark.parametrize("status", ["draft", "stopped"])
def test_drafts_and_stopped_experiments_take_nobody(make_config, experiment, status):
    config = make_config(layers=[{"name": "r", "experiments": [experiment("a", status=status)]}])
    assert not any(assigned(Assigner(config), FEW[:200]).values())


def test_an_empty_user_id_is_in_no_experiment(two_layers):
    assert Assigner(two_layers).assign("") == ()


def test_a_context_cannot_stand_in_for_the_user_id(two_layers):
    assigner = Assigner(two_layers)
    assert assigner.assign("user-1", {"id": "user-2"}) == assigner.assign("user-1")


def test_the_admin_and_listed_testers_may_force_and_others_may_not(make_config, experiment):
    layers = [{"name": "r", "experiments": [experiment("a", status="draft")]}]
    assigner = Assigner(make_config(layers=layers, test_users=["tester"]))
    forced = (Exposure("r", "a", 1, "a_b", forced=True),)
    assert assigner.assign("tester", force={"r": "a_b"}) == forced
    assert assigner.assign("anyone", force={"r": "a_b"}, privileged=True) == forced
    with pytest.raises(ForceRefused, match="user 'anyone' without the admin key"):
        assigner.assign("anyone", force={"r": "a_b"})


def test_forcing_what_is_not_there_names_what_is(two_layers):
    assigner = Assigner(two_layers)
    with pytest.raises(ForceUnknown, match="layer: got 'x', want one of ranking, rules"):
        assigner.assign("u", force={"x": "v0"}, privileged=True)
    with pytest.raises(ForceUnknown, match="variant of layer 'ranking': got 'b_a', want one of v0, v1, v2"):
        assigner.assign("u", force={"ranking": "b_a"}, privileged=True)


def test_the_explanation_names_the_variant_that_assignment_gives(make_config, experiment):
    config = make_config(
        holdout={"share": 0.05},
        layers=[
            {"name": "r", "experiments": [experiment("a", slice=[0, 0.5], traffic=0.5)]},
            {"name": "s", "experiments": [experiment("t", when={"tab": 1}), experiment("u", status="stopped")]},
        ],
    )
    assigner = Assigner(config)
    for user in FEW[:500]:
        for context in ({"tab": 1}, {"tab": 2}):
            reasons = assigner.explain(user, context)
            expected = {(e.experiment, e.variant) for e in assigner.assign(user, context)}
            assert {(reason.experiment, reason.variant) for reason in reasons if reason.variant} == expected
    texts = " | ".join(reason.why for user in FEW[:200] for reason in assigner.explain(user, {"tab": 2}))
    for part in ("in the holdout of 5.00%", "is outside the slice", "outside the traffic of 50.00%", "is stopped"):
        assert part in texts
    assert "does not hold for the context" in texts
