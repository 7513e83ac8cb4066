"""The simulated world: users and items with their observed and their hidden traits, drawn once from a seed.

Knows nothing of impressions. Legend: U users, I items, A age bands, K topics, T tasks, D taste dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Scenario

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

AGE_BANDS = ("under 18", "18-24", "25-34", "35-44", "45-54", "55 and over")
_AGE_SHARES = (0.10, 0.28, 0.27, 0.17, 0.11, 0.07)
TABS = ("home", "discover", "nearby")
TASTE_SIZE = 4
_REPORTS_IF_FINE = 0.001
_REPORTS_IF_OBJECTIONABLE = 0.02


@dataclass(frozen=True)
class Users:
    """Per user; `mood_U`, `taste_UD` and the part of `habit_UT` beyond the style are hidden."""

    age_U: Ints
    age_known_U: NDArray[np.bool_]
    style_U: Ints
    favourite_U: Ints
    activity_U: Floats
    mood_U: Floats
    taste_UD: Floats
    habit_UT: Floats


@dataclass(frozen=True)
class Items:
    """Per item, sorted by topic; `quality_I`, `objectionable_I` and `appeal_I` are hidden."""

    topic_I: Ints
    author_I: Ints
    duration_s_I: Floats
    views_I: Floats
    finish_rate_I: Floats
    report_rate_I: Floats
    quality_I: Floats
    objectionable_I: Floats
    appeal_I: Floats


@dataclass(frozen=True)
class World:
    """Users, items, and the effects that they share."""

    users: Users
    items: Items
    age_topic_AK: Floats
    topic_taste_KD: Floats
    topic_task_KT: Floats
    author_effect: Floats
    tab_effect: Floats


def make_world(scenario: Scenario, impressions: int, seed: np.random.SeedSequence) -> World:
    """Return the world behind that many impressions; the same seed and scenario give the same world."""
    rng = np.random.default_rng(seed)
    n_topics, tasks = scenario.size.topics, scenario.tasks
    users = _draw_users(scenario, scenario.users(impressions), rng)
    items = _draw_items(scenario, scenario.items(impressions), rng)
    emotion = scenario.emotion
    topic_task_KT = _normal(rng, (n_topics, len(tasks))) * floats([task.topic for task in tasks])
    return World(
        users=users,
        items=items,
        age_topic_AK=_normal(rng, (len(AGE_BANDS), n_topics)) * np.float32(emotion.age_topic),
        topic_taste_KD=_normal(rng, (n_topics, TASTE_SIZE)) * np.float32(emotion.taste / TASTE_SIZE**0.5),
        topic_task_KT=topic_task_KT,
        author_effect=_normal(rng, (int(items.author_I.max()) + 1,)) * np.float32(emotion.author),
        tab_effect=floats([emotion.tab, 0.0, -emotion.tab]),
    )


def _draw_users(scenario: Scenario, n_users: int, rng: np.random.Generator) -> Users:
    styles = list(scenario.styles.values())
    style_ST = floats([[style.tasks.get(name, 0.0) for name in scenario.task_names] for style in styles])
    shares = np.array([style.share for style in styles])
    style_U = rng.choice(len(styles), n_users, p=shares / shares.sum()).astype(np.int32)
    habit_T = floats([task.habit for task in scenario.tasks])
    return Users(
        age_U=rng.choice(len(AGE_BANDS), n_users, p=_AGE_SHARES).astype(np.int32),
        age_known_U=rng.random(n_users) >= scenario.exposure.age_missing,
        style_U=style_U,
        favourite_U=rng.integers(0, scenario.size.topics, n_users, dtype=np.int32),
        activity_U=np.exp(scenario.exposure.user_spread * _normal(rng, (n_users,))),
        mood_U=_normal(rng, (n_users,)) * np.float32(scenario.emotion.mood),
        taste_UD=_normal(rng, (n_users, TASTE_SIZE)),
        habit_UT=style_ST[style_U] + _normal(rng, (n_users, len(habit_T))) * habit_T,
    )


def _draw_items(scenario: Scenario, n_items: int, rng: np.random.Generator) -> Items:
    n_authors = max(1, round(n_items / scenario.size.items_per_author))
    quality_I = _normal(rng, (n_items,))
    objectionable_I = (rng.random(n_items) < scenario.emotion.objectionable_share).astype(np.float32)
    rank_I = rng.permutation(n_items) + 1
    views_I = np.float32(1e6) * np.power(rank_I, -scenario.exposure.item_zipf).astype(np.float32)
    reports = np.where(objectionable_I > 0, _REPORTS_IF_OBJECTIONABLE, _REPORTS_IF_FINE)
    sample_I = np.minimum(views_I, 2_000.0).astype(np.int64)
    return Items(
        topic_I=np.sort(rng.integers(0, scenario.size.topics, n_items, dtype=np.int32)),
        author_I=rng.integers(0, n_authors, n_items, dtype=np.int32),
        duration_s_I=np.round(np.exp(3.0 + 0.8 * _normal(rng, (n_items,))), 1),
        views_I=np.round(views_I),
        finish_rate_I=_sigmoid(0.8 * quality_I - 0.4 + 0.15 * _normal(rng, (n_items,))),
        report_rate_I=(rng.binomial(sample_I, reports) / sample_I).astype(np.float32),
        quality_I=quality_I,
        objectionable_I=objectionable_I,
        appeal_I=_normal(rng, (n_items,)) * np.float32(scenario.emotion.item),
    )


def floats(values: Sequence[float] | Sequence[Sequence[float]]) -> Floats:
    """Return the numbers as a float32 array."""
    return np.array(values, dtype=np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _sigmoid(x: Floats) -> Floats:
    return np.float32(1) / (np.float32(1) + np.exp(-x))
