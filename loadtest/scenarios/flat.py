"""Whether a figure stays flat over a long run: its slope by Theil and Sen, which a few outliers do not move.

Knows nothing of what the figure is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.scenarios.scenario import Check

WARM_UP_SHARE = 0.2
"""The first part of a run does not count: caches fill, memory is taken for good."""
_MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """A figure over time.

    Attributes:
        name: as checks and plots show it.
        unit: of its values.
        at_s: rising times from the start.
        values: one for each time.
        may_grow: how much it may grow over what is counted, in its unit, and still be flat.
        may_grow_share: the same as a share of its median; the larger of both holds.
    """

    name: str
    unit: str
    at_s: Sequence[float]
    values: Sequence[float]
    may_grow: float
    may_grow_share: float = 0.0


@dataclass(frozen=True)
class Trend:
    """What became of a series after the warm-up; NaN where too little is left of it.

    Attributes:
        median: of its values.
        growth: slope times the time that counts.
        bound: how much was allowed.
        per_hour: slope.
    """

    median: float
    growth: float
    bound: float
    per_hour: float

    @property
    def flat(self) -> bool:
        """Whether it grew no more than is allowed; less is always good."""
        return bool(self.growth <= self.bound)


def trend(series: Series) -> Trend:
    """Return a series' trend after the warm-up."""
    at_s, values = np.asarray(series.at_s, dtype=float), np.asarray(series.values, dtype=float)
    known = np.isfinite(values)
    at_s, values = at_s[known], values[known]
    if len(at_s):
        counted = at_s >= at_s[0] + WARM_UP_SHARE * (at_s[-1] - at_s[0])
        at_s, values = at_s[counted], values[counted]
    if len(at_s) < 3:
        return Trend(*(float("nan"),) * 4)
    step = -(-len(at_s) // _MOST_POINTS)
    first, second = np.triu_indices(len(at_s[::step]), k=1)
    slopes = (values[::step][second] - values[::step][first]) / (at_s[::step][second] - at_s[::step][first])
    slope, median = float(np.median(slopes)), float(np.median(values))
    bound = max(series.may_grow, series.may_grow_share * abs(median))
    return Trend(median, slope * float(at_s[-1] - at_s[0]), bound, slope * 3600)


def flat_check(series: Series) -> Check:
    """Return the check that a series stayed flat; one that says too little fails."""
    found = trend(series)
    unit = f" {series.unit}".rstrip()
    return Check(
        f"{series.name} stays flat",
        f"grows ≤ {found.bound:.3g}{unit}",
        f"{found.growth:+.3g}{unit} ({found.per_hour:+.3g} an hour), median {found.median:.4g}",
        found.flat,
    )
