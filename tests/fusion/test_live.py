"""A config compiled for a model: variants → policies, and what is refused before it could serve."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.errors import ConfigInvalid
from fusion.live import compile_config
from fusion.signals import Probabilities

TASKS = ("click", "like", "hate")


@pytest.fixture
def outputs():
    random = np.random.default_rng(3)
    p_NT, p_up_N = random.random((40, 3)), random.random(40)
    return Probabilities(p_NT, p_NT * p_up_N[:, None], p_up_N)


def arms(name, *effects):
    weight = 1 / len(effects)
    return {
        "name": name,
        "variants": [{"name": f"{name}{i}", "weight": weight, **effect} for i, effect in enumerate(effects)],
    }


def test_users_in_no_experiment_get_the_default_policy(make_config):
    decision = compile_config(make_config(), TASKS, True).decide("anyone")
    assert (decision.policy_name, decision.assignments, decision.exposures) == ("feed", {}, ())


def test_a_variant_names_a_policy_and_other_layers_patch_it(make_config):
    config = make_config(
        layers=[
            {"name": "ranking", "experiments": [arms("p", {}, {"policy": "plain"})]},
            {"name": "weight", "experiments": [arms("w", {}, {"patch": {"weights": {"click": 7.0}}})]},
        ]
    )
    fusion = compile_config(config, TASKS, True)
    seen = {}
    for user in range(200):
        decision = fusion.decide(f"u{user}")
        seen[tuple(decision.assignments.values())] = (decision.policy_name, decision.policy.policy.weights)
    feed, plain = {"click": 1.0, "like": 2.0}, {"click": 1.0}
    assert seen == {
        ("p0", "w0"): ("feed", feed),
        ("p0", "w1"): ("feed", {**feed, "click": 7.0}),
        ("p1", "w0"): ("plain", plain),
        ("p1", "w1"): ("plain", {"click": 7.0}),
    }


def test_forcing_a_variant_gives_the_ranking_that_its_users_have(make_config, outputs):
    layers = [{"name": "ranking", "experiments": [arms("p", {}, {"policy": "plain"})]}]
    fusion = compile_config(make_config(layers=layers), TASKS, True)
    own = next(
        decision for user in range(100) if (decision := fusion.decide(f"u{user}")).assignments == {"ranking": "p1"}
    )
    forced = fusion.decide("somebody", force={"ranking": "p1"}, privileged=True)
    np.testing.assert_array_equal(own.policy.rank(outputs).order_K, forced.policy.rank(outputs).order_K)


def test_a_policy_that_does_not_fit_the_model_is_refused_with_its_place(make_config):
    with pytest.raises(ConfigInvalid, match=r"fusion\.yaml:\d+: policies\.feed\.weights\.like: .*one of click, share"):
        compile_config(make_config(), ("click", "share"), True)
    with pytest.raises(ConfigInvalid, match=r"policies\.feed\.signal: got signal joint: a model without a latent"):
        compile_config(make_config(), TASKS, False)


def test_a_patch_that_does_not_fit_the_model_is_refused_with_its_variants(make_config):
    layers = [{"name": "w", "experiments": [arms("w", {}, {"patch": {"weights": {"forward": 1.0}}})]}]
    with pytest.raises(ConfigInvalid, match=r"layers: got 'feed' as patched by w1: weights\.forward"):
        compile_config(make_config(layers=layers), TASKS, True)


def test_the_shipped_config_serves_the_five_tasks_of_the_real_and_the_simulated_feed(outputs):
    from pathlib import Path

    from fusion.policy import load_config

    config = load_config(Path(__file__).parents[2] / "configs/fusion.yaml")
    fusion = compile_config(config, ("click", "like", "follow", "comment", "forward"), True)
    assert fusion.decide("1").policy_name == "feed"
