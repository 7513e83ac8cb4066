"""Which user saw which item, when and where: visits spread over the days, items chosen by a plain feed.

Knows nothing of the latent emotion. Legend: N rows, S sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import Scenario
from simulator.world import TABS, Items, Users

START_MS = 1_736_121_600_000
"""First millisecond of the first simulated day: 2025-01-06 00:00 UTC, a Monday."""
DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_STEP_MS = 12_000
_TAB_SHARES = (0.60, 0.28, 0.12)
_HOUR_WEIGHTS = np.array([3, 2, 1, 1, 1, 2, 3, 5, 6, 5, 5, 6, 8, 7, 5, 5, 5, 6, 8, 10, 12, 12, 9, 6], dtype=np.float64)
_HOUR_ENDS = np.concatenate([[0.0], np.cumsum(_HOUR_WEIGHTS) / _HOUR_WEIGHTS.sum()])


@dataclass(frozen=True)
class Exposures:
    """Rows of impressions: indices of users and items, the context, the time."""

    user_N: NDArray[np.int32]
    item_N: NDArray[np.int32]
    session_N: NDArray[np.int32]
    hour_N: NDArray[np.int32]
    tab_N: NDArray[np.int32]
    time_ms_N: NDArray[np.int64]


class Feed:
    """Draws exposures: users by activity, items by popularity, some from the user's favourite topic."""

    def __init__(self, scenario: Scenario, users: Users, items: Items) -> None:
        """Prepare the cumulative weights of users and items."""
        self._scenario = scenario
        self._favourite_U = users.favourite_U
        self._user_ends = _ends(users.activity_U)
        self._item_ends = np.concatenate([[0.0], _ends(items.views_I)])
        bounds = np.searchsorted(items.topic_I, np.arange(scenario.size.topics + 1))
        self._topic_ends = self._item_ends[bounds]

    def draw(self, rows: int, day: int, part: tuple[float, float], rng: np.random.Generator) -> Exposures:
        """Return `rows` exposures of one day, by time.

        Args:
            rows: number of exposures.
            day: 0-based day.
            part: the part of the day's traffic, from and to in [0, 1], in which the visits begin.
            rng: source of the draws.
        """
        lengths_S = self._session_lengths(rows, rng)
        start_ms_S = self._session_starts(lengths_S, part, rng)
        user_S = np.searchsorted(self._user_ends, rng.random(len(lengths_S)), side="right").astype(np.int32)
        tab_S = rng.choice(len(TABS), len(lengths_S), p=_TAB_SHARES).astype(np.int32)
        session_N = np.repeat(np.arange(len(lengths_S), dtype=np.int32), lengths_S)
        place_N = np.arange(rows) - np.repeat(np.cumsum(lengths_S) - lengths_S, lengths_S)
        time_N = start_ms_S[session_N] + place_N * _STEP_MS
        order_N = np.argsort(time_N, kind="stable")
        session_N, time_N = session_N[order_N], time_N[order_N]
        user_N = user_S[session_N]
        return Exposures(
            user_N=user_N,
            item_N=self._items(user_N, rng),
            session_N=session_N,
            hour_N=(time_N // _HOUR_MS).astype(np.int32),
            tab_N=tab_S[session_N],
            time_ms_N=START_MS + day * DAY_MS + time_N,
        )

    def _session_lengths(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        mean = self._scenario.size.rows_per_session
        lengths_S = rng.geometric(1.0 / mean, int(rows / mean * 1.2) + 50)
        while lengths_S.sum() < rows:
            lengths_S = np.concatenate([lengths_S, rng.geometric(1.0 / mean, len(lengths_S))])
        ends_S = np.cumsum(lengths_S)
        last = int(np.searchsorted(ends_S, rows))
        lengths_S = lengths_S[: last + 1].copy()
        lengths_S[last] -= ends_S[last] - rows
        return lengths_S

    def _session_starts(
        self, lengths_S: NDArray[np.int64], part: tuple[float, float], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return starts in ms after midnight, by the hours' traffic, early enough to end the same day."""
        quantile_S = part[0] + (part[1] - part[0]) * rng.random(len(lengths_S))
        start_S = (np.interp(quantile_S, _HOUR_ENDS, np.arange(25)) * _HOUR_MS).astype(np.int64)
        return np.maximum(np.minimum(start_S, DAY_MS - 1 - lengths_S * _STEP_MS), 0)

    def _items(self, user_N: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
        favourite_N = self._favourite_U[user_N]
        low_N, high_N = self._topic_ends[favourite_N], self._topic_ends[favourite_N + 1]
        personal_N = (rng.random(len(user_N)) < self._scenario.exposure.favourite_share) & (high_N > low_N)
        draw_N = rng.random(len(user_N))
        draw_N = np.where(personal_N, low_N + draw_N * (high_N - low_N), draw_N)
        item_N = np.searchsorted(self._item_ends[1:], draw_N, side="right")
        return np.minimum(item_N, len(self._item_ends) - 2).astype(np.int32)


def _ends(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    ends = np.cumsum(weights, dtype=np.float64)
    ends /= ends[-1]
    return ends
