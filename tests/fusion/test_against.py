"""What moves between two configs, and what needs a new phase."""

from __future__ import annotations

import pytest

from fusion.against import compare_configs
from fusion.errors import PhaseNeeded

POLICIES = {"feed": {"formula": "weighted_sum", "weights": {"click": 1.0, "like": 2.0}, "p_up": 0.5}}


def arms(*weights):
    return [{"name": f"v{index}", "weight": weight} for index, weight in enumerate(weights)]


@pytest.fixture
def with_experiment(make_config, experiment):
    def make(salt=None, **keys):
        return make_config(layers=[{"name": "r", "salt": salt, "experiments": [experiment("a", **keys)]}])

    return make


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"variants": arms(0.9, 0.1)}, r"weights: got \[0\.5, 0\.5\] → \[0\.9, 0\.1\] in running phase 1, want .* 2"),
        ({"variants": arms(0.4, 0.3, 0.3)}, "variants"),
        ({"slice": [0, 0.5]}, r"slice: got \[0\.0, 1\.0\] → \[0\.0, 0\.5\]"),
        ({"salt": "other"}, "layer: got r → other"),
        ({"status": "stopped", "variants": arms(0.9, 0.1)}, "weights"),
    ],
)
def test_what_moves_users_between_variants_needs_a_new_phase(with_experiment, change, what):
    old = with_experiment(variants=arms(0.5, 0.5))
    with pytest.raises(PhaseNeeded, match=rf"fusion\.yaml:\d+: experiment 'a', {what}"):
        compare_configs(old, with_experiment(**{"variants": arms(0.5, 0.5), **change}))
    notes = compare_configs(old, with_experiment(**{"variants": arms(0.5, 0.5), **change, "phase": 2}))
    assert "experiment a: phase 1 → 2, all users are dealt anew" in notes


def test_a_ramp_is_named_with_the_share_that_joins(with_experiment):
    notes = compare_configs(with_experiment(traffic=0.1), with_experiment(traffic=0.5))
    assert notes == ["experiment a: traffic 10.00% → 50.00%, 40.00% of the slice's users join, nobody changes variant"]


def test_a_policy_that_changes_under_a_running_experiment_is_told(make_config, experiment):
    layers = [{"name": "r", "experiments": [experiment("a")]}]
    policies = {"feed": {"formula": "weighted_sum", "weights": {"click": 1.0, "like": 3.0}, "p_up": 0.5}}
    old, new = (make_config(layers=layers, policies=given) for given in (POLICIES, policies))
    notes = compare_configs(old, new)
    for variant in ("a_a", "a_b"):
        assert any(note.startswith(f"experiment a: the policy under '{variant}' (feed) changes") for note in notes)


def test_an_experiment_does_not_go_back_to_an_earlier_phase(with_experiment):
    with pytest.raises(PhaseNeeded, match="experiment 'a', phase: got 2 → 1, want phase 3"):
        compare_configs(with_experiment(phase=2), with_experiment(phase=1))


def test_a_draft_may_change_freely(with_experiment):
    draft = with_experiment(status="draft", variants=arms(0.5, 0.5))
    assert compare_configs(draft, with_experiment(variants=arms(0.9, 0.1))) == ["experiment a: draft → running"]


def test_policies_defaults_and_experiments_that_come_and_go_are_named(make_config, with_experiment):
    notes = compare_configs(make_config(), with_experiment())
    assert notes == ["experiment a: new"]
    assert compare_configs(with_experiment(), make_config()) == ["experiment a: ends"]
    notes = compare_configs(make_config(), make_config(default="plain", holdout={"share": 0.1}))
    assert notes == [
        "default policy: feed → plain for all users in no experiment that names one",
        "holdout: 0.00% → 10.00% (users stay where they are)",
    ]
    changed = {"feed": {"formula": "weighted_sum", "weights": {"click": 2.0}}}
    notes = compare_configs(make_config(), make_config(policies=changed))
    assert notes[0] == "policy feed: weights.click 1.0 → 2.0; weights.like 2.0 → absent; p_up 0.5 → 0.0"
    assert notes[1] == "policy plain: removed"


def test_descriptions_move_nothing(make_config):
    described = {"feed": {**POLICIES["feed"], "description": "what everybody has"}}
    notes = compare_configs(make_config(policies=POLICIES), make_config(policies=described))
    assert notes == ["descriptions, test users or the order of keys only: no ranking changes"]


def test_equal_configs_move_nothing(make_config):
    assert compare_configs(make_config(), make_config()) == ["nothing: the configs say the same"]
