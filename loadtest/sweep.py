"""Finds the highest rate at which an objective still holds: doubling, then halving the gap.

Knows nothing of sockets: a step is a function from a rate to a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.errors import PlanInvalid
from loadtest.measure import Measurement


@dataclass(frozen=True)
class Slo:
    """The objective.

    Attributes:
        p99_ms: most latency p99 of 2xx answers, from the intended send time.
        max_error_share: most requests that were not answered 2xx.
        min_achieved_share: least achieved over offered rate; below, a queue grows.
    """

    p99_ms: float
    max_error_share: float = 0.001
    min_achieved_share: float = 0.95

    def why_not(self, figures: Measurement) -> str | None:
        """Return what keeps the figures from holding the objective, None when they hold it."""
        if figures.ok == 0:
            return "no 2xx answer"
        if figures.error_share > self.max_error_share:
            worst = next(name for name in figures.statuses if not name.startswith("2"))
            return f"errors {figures.error_share:.2%}, mostly {worst}"
        if not figures.latency_ms["p99"] <= self.p99_ms:
            return f"p99 {figures.latency_ms['p99']:.1f} ms"
        if figures.achieved_rate < self.min_achieved_share * figures.offered_rate:
            return f"achieved {figures.achieved_rate / figures.offered_rate:.0%}"
        return None


@dataclass(frozen=True)
class Step:
    """One rate that was tried; `why_not` is None where the objective held."""

    rate_per_s: float
    measurement: Measurement
    why_not: str | None


@dataclass(frozen=True)
class Sweep:
    """The steps in the order they were made, and the answer.

    Attributes:
        highest_rate_per_s: highest rate tried at which the objective held, below the lowest at which it did not;
            None where it held nowhere.
        generator_limited: the step that ended the search was too slow while the generator itself was late, so that
            the server may hold more.
        open_ended: the objective held up to the highest rate that was allowed.
    """

    steps: tuple[Step, ...]
    highest_rate_per_s: float | None
    generator_limited: bool
    open_ended: bool

    @property
    def summary(self) -> str:
        """The answer in one line."""
        if self.highest_rate_per_s is None:
            return "the objective held at no rate"
        text = f"the objective holds up to {self.highest_rate_per_s:.1f} requests/s"
        if self.open_ended:
            return text + ", the highest rate allowed; it may hold beyond"
        return text + (", where the generator became the limit" if self.generator_limited else "")


def sweep(
    run: Callable[[float], Measurement],
    slo: Slo,
    start_per_s: float,
    limit_per_s: float,
    precision: float = 0.05,
) -> Sweep:
    """Return the highest rate that holds the objective, to within `precision`.

    A run that is invalid because the generator was late counts as it stands when it holds the objective (its
    lateness only adds to the latency); when it does not, the answer says so.

    Args:
        run: gives the measurement of a rate.
        slo: the objective.
        start_per_s: the first rate; it is doubled while the objective holds, halved while it does not.
        limit_per_s: no rate above is tried.
        precision: the search ends when the gap between holding and not is at most this share.

    Raises:
        PlanInvalid: rates or precision out of range.
    """
    if not (math.isfinite(limit_per_s) and 0 < start_per_s <= limit_per_s):
        raise PlanInvalid("start and limit", found=(start_per_s, limit_per_s), expected="0 < start ≤ limit")
    if not 0.001 <= precision <= 1:
        raise PlanInvalid("precision", found=precision, expected="0.001 to 1")
    if not slo.p99_ms > 0:
        raise PlanInvalid("SLO p99", found=slo.p99_ms, expected="more than 0 ms")
    steps: list[Step] = []
    low: float | None = None
    failed: Step | None = None
    rate = start_per_s
    while True:
        measurement = run(rate)
        step = Step(rate, measurement, slo.why_not(measurement))
        steps.append(step)
        if step.why_not is None:
            low = rate
        else:
            failed = step
        if failed is None:
            if rate >= limit_per_s:
                break
            rate = min(2 * rate, limit_per_s)
        elif low is None:
            rate /= 2
            if rate < start_per_s / 64:
                break
        elif failed.rate_per_s <= low * (1 + precision):
            break
        else:
            rate = math.sqrt(low * failed.rate_per_s)
    slow = failed is not None and failed.measurement.ok > 0 and failed.measurement.error_share <= slo.max_error_share
    late = failed is not None and slow and not failed.measurement.valid
    return Sweep(tuple(steps), low, generator_limited=late, open_ended=failed is None)
