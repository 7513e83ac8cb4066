"""What a steady rate above or below the capacity gave: how much was answered, how much refused, and how soon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.drive import Outcome

DEADLINE_MS = 400
"""As in docker-compose.yml."""


@dataclass(frozen=True)
class Level:
    """What a steady rate gave, without its warm-up; times in ms from the intended send, NaN where there are none.

    Attributes:
        share: of the capacity.
        deadline_ms: that its requests asked for.
        offered_per_s: requests, and good_per_s: answers 2xx, a second; late ones beyond the level's end do not count.
        good_ms, refused_ms: percentiles 50 and 99 of 2xx, and of 503.
        refused: answers 503; expired: 504; failed: anything else.
        lag_ms: the load's own lateness, percentile 99: part of all the times.
        capacity_per_s: answers a second in a closed loop, mean of one right before and one right after.
    """

    share: float
    deadline_ms: int
    offered_per_s: float
    good_per_s: float
    good_ms: tuple[float, float]
    refused_ms: tuple[float, float]
    refused: int
    expired: int
    failed: int
    lag_ms: float
    capacity_per_s: float

    @property
    def of_capacity(self) -> float:
        """How much was answered, as a share of the capacity."""
        return self.good_per_s / self.capacity_per_s

    @property
    def name(self) -> str:
        """As tables and plots show it."""
        return f"{self.share:g}×" + (f", {self.deadline_ms} ms" if self.deadline_ms != DEADLINE_MS else "")


def level_of(
    outcome: Outcome, share: float, deadline_ms: int, warmup_s: float, duration_s: float, capacity_per_s: float
) -> Level:
    """Return what a rate gave between the warm-up and its end."""
    first, last = np.searchsorted(outcome.send_ns, (warmup_s * 1e9, (warmup_s + duration_s) * 1e9))
    status, latency_ms = outcome.status[first:last], outcome.latency_ns[first:last] / 1e6
    answered_s = (outcome.send_ns + outcome.latency_ns) / 1e9
    inside = (answered_s >= warmup_s) & (answered_s < warmup_s + duration_s)
    good, refused, expired = _good(status), status == 503, status == 504
    return Level(
        share=share,
        deadline_ms=deadline_ms,
        offered_per_s=float(last - first) / duration_s,
        good_per_s=float((_good(outcome.status) & inside).sum()) / duration_s,
        good_ms=_percentiles(latency_ms[good]),
        refused_ms=_percentiles(latency_ms[refused]),
        refused=int(refused.sum()),
        expired=int(expired.sum()),
        failed=int((~(good | refused | expired)).sum()),
        lag_ms=_percentiles(outcome.lag_ns[first:last] / 1e6)[1],
        capacity_per_s=capacity_per_s,
    )


def _good(status: NDArray[np.int16]) -> NDArray[np.bool_]:
    return (status >= 200) & (status < 300)


def _percentiles(value_ms: NDArray[np.float64]) -> tuple[float, float]:
    if not len(value_ms):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(value_ms, (50, 99)).tolist()
    return p50, p99
