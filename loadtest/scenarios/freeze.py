"""freeze: a ranker that stands still for a second must show in the reported p99 of a steady load."""

from __future__ import annotations

import os
import signal
import time

from loadtest.measure import Measurement, measure
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, timeline_of
from loadtest.scenarios.stack import PATIENT, Ranker

FREEZE_S = 1.0
_BEFORE_S, _QUICK_S, _FULL_S = 1.5, 4, 10


def run(settings: Settings) -> ScenarioResult:
    """Freeze a ranker once and read the percentiles."""
    length_s = float(settings.amount(_FULL_S, _QUICK_S))
    with Ranker(settings, environment=PATIENT) as ranker:
        with SteadyLoad(settings, ranker.url, arrivals="constant") as load:
            time.sleep(_BEFORE_S)
            frozen = time.monotonic()
            os.kill(ranker.process.pid, signal.SIGSTOP)
            time.sleep(FREEZE_S)
            os.kill(ranker.process.pid, signal.SIGCONT)
            thawed = time.monotonic()
            time.sleep(max(0.5, length_s - _BEFORE_S - FREEZE_S))
        figures = measure(load.outcome, 0.0, float(load.outcome.send_ns[-1]) / 1e9 + 1e-9)
    events = ((load.seconds(frozen), "SIGSTOP"), (load.seconds(thawed), "SIGCONT"))
    shown = {"latency_ms": figures.latency_ms, "statuses": figures.statuses, "frozen_s": round(thawed - frozen, 3)}
    return ScenarioResult(checks(figures, thawed - frozen), shown, timeline_of(load.outcome, events))


def checks(figures: Measurement, frozen_s: float) -> tuple[Check, ...]:
    """Judge the figures of a load during which the server stood still for so long."""
    waited_share = frozen_s / figures.duration_s
    p99_ms = 1000 * frozen_s * (1 - 0.01 / waited_share)  # of an even load, so many waited longer than that
    return (
        at_least("p99 shows the freeze", figures.latency_ms["p99"], round(0.9 * p99_ms), "ms"),
        at_least("so does the maximum", figures.latency_ms["max"], round(900 * frozen_s), "ms"),
        at_most("the median does not", figures.latency_ms["p50"], round(500 * frozen_s), "ms"),
        at_most("requests not answered 2xx", figures.planned - figures.ok, 0),
    )


SCENARIO = Scenario("freeze", "a ranker frozen for 1 s under a steady rate: the reported p99 must show it", run)
