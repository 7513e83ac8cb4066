import math

import numpy as np
import pytest

from simulator.errors import ScenarioInvalid
from simulator.latent import find_intercepts, probabilities, sigmoid
from simulator.logs import Simulation
from simulator.scenario import Scenario, read_scenario
from simulator.world import World


def slow_probabilities(scenario: Scenario, world: World, intercepts, rows, n: int):
    """The definition, one row and one task at a time, in double precision."""
    user, item, users, items = int(rows.user_N[n]), int(rows.item_N[n]), world.users, world.items
    topic, effect = int(items.topic_I[item]), scenario.emotion
    logit = intercepts.p_up
    if users.favourite_U[user] == topic:
        logit += effect.favourite
    logit += effect.quality * float(items.quality_I[item])
    logit += effect.objectionable * float(items.objectionable_I[item])
    logit += float(world.author_effect[items.author_I[item]]) + float(items.appeal_I[item])
    logit += float(world.age_topic_AK[users.age_U[user], topic]) + float(users.mood_U[user])
    for d in range(world.topic_taste_KD.shape[1]):
        logit += float(users.taste_UD[user, d]) * float(world.topic_taste_KD[topic, d])
    logit += effect.hour * math.cos(2 * math.pi * (int(rows.hour_N[n]) - 21) / 24)
    logit += float(world.tab_effect[rows.tab_N[n]])
    u = 1 / (1 + math.exp(-logit))
    a, b = [], []
    for t, task in enumerate(scenario.tasks):
        e = float(users.habit_UT[user, t]) + float(world.topic_task_KT[topic, t])
        e += task.quality * float(items.quality_I[item])
        e += task.objectionable * float(items.objectionable_I[item])
        likely = 1 / (1 + math.exp(-(e + intercepts.tasks[t])))
        rare = scenario.k * task.base_rate / (1 + math.exp(-scenario.damping * e))
        a.append(likely if task.kind == "positive" else rare)
        b.append(rare if task.kind == "positive" else likely)
    return u, a, b


@pytest.mark.parametrize("name", ["default", "strong_habits"])
def test_probabilities_are_those_of_the_definition(name):
    simulation = Simulation(read_scenario(name), 400, 3)
    for chunk in simulation.chunks():
        for n in range(len(chunk.z_N)):
            u, a, b = slow_probabilities(simulation.scenario, simulation.world, simulation.intercepts, chunk.rows, n)
            assert u == pytest.approx(chunk.truth.u_N[n], rel=1e-4)
            assert a == pytest.approx(chunk.truth.a_NT[n].tolist(), rel=1e-4)
            assert b == pytest.approx(chunk.truth.b_NT[n].tolist(), rel=1e-4)


def test_probabilities_do_not_change_the_world():
    simulation = Simulation(read_scenario("default"), 400, 3)
    before = simulation.world.users.habit_UT.copy()
    rows = next(iter(simulation.chunks())).rows
    first = probabilities(simulation.scenario, simulation.world, simulation.intercepts, rows)
    again = probabilities(simulation.scenario, simulation.world, simulation.intercepts, rows)
    np.testing.assert_array_equal(first.a_NT, again.a_NT)
    np.testing.assert_array_equal(before, simulation.world.users.habit_UT)


def test_intercepts_give_the_mean_and_the_rates_on_the_rows_they_were_found_on():
    simulation = Simulation(read_scenario("default"), 20_000, 3)
    rows = next(iter(simulation.chunks())).rows
    intercepts = find_intercepts(simulation.scenario, simulation.world, rows)
    p = probabilities(simulation.scenario, simulation.world, intercepts, rows)
    assert simulation.scenario.emotion.mean == pytest.approx(p.u_N.mean(), rel=1e-4)
    p_NT = p.a_NT * p.u_N[:, None] + p.b_NT * (1 - p.u_N[:, None])
    rates = [task.base_rate for task in simulation.scenario.tasks]
    assert rates == pytest.approx(p_NT.mean(axis=0).tolist(), rel=1e-3)


def test_a_rate_above_the_share_of_its_state_is_refused_by_name():
    scenario = read_scenario("default")
    click = scenario.tasks[0].model_copy(update={"base_rate": 0.6})
    greedy = scenario.model_copy(update={"tasks": (click, *scenario.tasks[1:])})
    with pytest.raises(ScenarioInvalid, match=r"task click: base_rate: got 0\.6, want a rate between"):
        Simulation(greedy, 2_000, 1)


def test_sigmoid_is_finite_at_any_logit():
    x = np.array([-1e30, -800.0, -1.0, 0.0, 1.0, 800.0, 1e30])
    result = sigmoid(x)
    assert result.tolist() == pytest.approx([0, 0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1, 1])
