"""The probabilities behind the log: u = P(UP|x), a_t = P(t|UP,x), b_t = P(t|¬UP,x), as DLEN supposes them.

P(t) = a_t·u + b_t·(1-u) (Eq. 1), with b_t < α_t = k·base_rate_t (Eq. 5-7); given the state and x the tasks are
independent. Knows nothing of files. Legend: N rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ScenarioInvalid
from simulator.exposures import Exposures
from simulator.scenario import Scenario
from simulator.world import World, floats

Floats = NDArray[np.float32]
_SEARCH = (-30.0, 30.0)
_BEST_HOUR = 21


@dataclass(frozen=True)
class Intercepts:
    """What makes the mean of P(UP) and each task's rate come out as the scenario asks, in logits."""

    p_up: float
    tasks: tuple[float, ...]


@dataclass(frozen=True)
class Probabilities:
    """The truth of N rows: `u_N`, and per task `a_NT` in state UP, `b_NT` in state ¬UP."""

    u_N: Floats
    a_NT: Floats
    b_NT: Floats


def emotion_N(scenario: Scenario, world: World, rows: Exposures) -> Floats:
    """Return logit P(UP|x) less its intercept, float32[N]."""
    users, items, effect = world.users, world.items, scenario.emotion
    user_N, item_N = rows.user_N, rows.item_N
    topic_N = items.topic_I[item_N]
    total_N: Floats = np.float32(effect.favourite) * (users.favourite_U[user_N] == topic_N)
    total_N += (
        np.float32(effect.quality) * items.quality_I
        + np.float32(effect.objectionable) * items.objectionable_I
        + world.author_effect[items.author_I]
        + items.appeal_I
    )[item_N]
    total_N += world.age_topic_AK[users.age_U[user_N], topic_N]
    total_N += users.mood_U[user_N]
    total_N += np.einsum("nd,nd->n", users.taste_UD[user_N], world.topic_taste_KD[topic_N])
    hour_24 = np.float32(effect.hour) * np.cos((np.arange(24) - _BEST_HOUR) * (2 * np.pi / 24))
    total_N += hour_24.astype(np.float32)[rows.hour_N]
    total_N += world.tab_effect[rows.tab_N]
    return total_N


def expression_NT(scenario: Scenario, world: World, rows: Exposures) -> Floats:
    """Return e: how readily each task is done, apart from the emotion, float32[N, T]."""
    items = world.items
    quality_T = floats([task.quality for task in scenario.tasks])
    objectionable_T = floats([task.objectionable for task in scenario.tasks])
    item_IT = items.quality_I[:, None] * quality_T + items.objectionable_I[:, None] * objectionable_T
    item_IT += world.topic_task_KT[items.topic_I]
    e_NT: Floats = world.users.habit_UT[rows.user_N]
    e_NT += item_IT[rows.item_N]
    return e_NT


def probabilities(scenario: Scenario, world: World, intercepts: Intercepts, rows: Exposures) -> Probabilities:
    """Return u, a and b of the rows; all are float32 and inside (0, 1)."""
    u_N = sigmoid(emotion_N(scenario, world, rows) + np.float32(intercepts.p_up))
    e_NT = expression_NT(scenario, world, rows)
    likely_NT = sigmoid(e_NT + floats(intercepts.tasks))
    alpha_T = floats([scenario.k * task.base_rate for task in scenario.tasks])
    rare_NT = alpha_T * sigmoid(np.float32(scenario.damping) * e_NT)
    positive_T = np.array([task.kind == "positive" for task in scenario.tasks])
    return Probabilities(
        u_N=u_N,
        a_NT=np.where(positive_T, likely_NT, rare_NT),
        b_NT=np.where(positive_T, rare_NT, likely_NT),
    )


def find_intercepts(scenario: Scenario, world: World, pilot: Exposures) -> Intercepts:
    """Return the intercepts that give the scenario's mean P(UP) and base rates on the pilot rows.

    Raises:
        ScenarioInvalid: a base rate cannot be reached with that mean P(UP); names the task and the range.
    """
    emotion = emotion_N(scenario, world, pilot).astype(np.float64)
    p_up = _solve("emotion.mean", scenario.emotion.mean, lambda x: float(sigmoid(emotion + x).mean()))
    u_N = sigmoid(emotion + p_up)
    e_NT = expression_NT(scenario, world, pilot).astype(np.float64)
    found = []
    for index, task in enumerate(scenario.tasks):
        e_N = e_NT[:, index]
        weight_N = u_N if task.kind == "positive" else 1.0 - u_N
        rare_N = scenario.k * task.base_rate * sigmoid(scenario.damping * e_N)
        rare = float(((1.0 - weight_N) * rare_N).mean())

        def rate(x: float, e_N: NDArray[np.float64] = e_N, weight_N: NDArray[np.float64] = weight_N) -> float:
            return float((weight_N * sigmoid(e_N + x)).mean())

        found.append(_solve(f"task {task.name}: base_rate", task.base_rate, rate, already=rare))
    return Intercepts(p_up=p_up, tasks=tuple(found))


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """Return 1 / (1 + exp(-x)), finite at any x."""
    result: NDArray[Any] = np.exp(-np.logaddexp(np.zeros((), x.dtype), -x))
    return result


def _solve(thing: str, target: float, rate: Callable[[float], float], already: float = 0.0) -> float:
    """Return x with already + rate(x) = target, for a rising rate, by bisection."""
    low, high = _SEARCH
    if not already + rate(low) < target < already + rate(high):
        expected = f"a rate between {already + rate(low):.4g} and {already + rate(high):.4g}"
        raise ScenarioInvalid(thing, found=target, expected=expected)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if already + rate(middle) < target else (low, middle)
    return (low + high) / 2
