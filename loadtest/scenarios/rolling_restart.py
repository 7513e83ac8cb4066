"""rolling-restart: two replicas behind nginx are restarted in turn, again and again; no request may fail."""

from __future__ import annotations

import time

import numpy as np

from loadtest.drive import Outcome
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.replicas import behind_nginx
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, timeline_of

_FULL, _QUICK = 6, 1
_SETTLE_S = 1.0
PATIENCE_S = 1.5
"""nginx gives up within a second."""


def run(settings: Settings) -> ScenarioResult:
    """Restart both replicas in turn, as a roll-out does: SIGTERM, wait until it is gone, start, wait until ready."""
    moments: list[tuple[float, str]] = []
    took_s: list[float] = []
    rounds = settings.amount(_FULL, _QUICK)
    with behind_nginx(settings) as pair:
        with SteadyLoad(settings, pair.url) as load:
            for number in range(rounds):
                for index, replica in enumerate(pair.replicas, 1):
                    time.sleep(_SETTLE_S)
                    begun = time.monotonic()
                    moments.append((begun, f"replica {index}: SIGTERM"))
                    replica.end_gracefully()
                    replica.start()
                    moments.append((time.monotonic(), "ready again"))
                    took_s.append(round(time.monotonic() - begun, 2))
                settings.say(f"roll {number + 1} of {rounds}: {took_s[-2]} s and {took_s[-1]} s")
            time.sleep(_SETTLE_S)
        asked_twice = len(pair.asked_twice())
    outcome = load.outcome
    figures = {
        "requests": len(outcome.status),
        "restarts": len(took_s),
        "asked_of_both_replicas": asked_twice,
        "p99_ms": round(float(np.percentile(outcome.latency_ns, 99)) / 1e6, 1),
        "restart_s": took_s,
    }
    events = tuple((load.seconds(at), name) for at, name in moments)
    return ScenarioResult(checks(outcome, len(took_s), 2 * rounds), figures, timeline_of(outcome, events))


def checks(outcome: Outcome, restarts: int, wanted: int) -> tuple[Check, ...]:
    """Judge what callers saw."""
    failed = int(((outcome.status < 200) | (outcome.status >= 300)).sum())
    longest_s = float(np.max(outcome.latency_ns, initial=0)) / 1e9
    return (
        at_most("failed requests", failed, 0),
        at_most("longest answer", longest_s, PATIENCE_S, "s"),
        at_least("replicas restarted", restarts, wanted),
        at_least("requests answered", len(outcome.status) - failed, 1),
    )


SCENARIO = Scenario(
    "rolling-restart",
    "two replicas behind nginx, six rolling restarts at a steady rate: no request fails",
    run,
    ("nginx",),
)
