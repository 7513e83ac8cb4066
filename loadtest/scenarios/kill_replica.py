"""kill-replica: one of two replicas behind nginx is killed; nginx asks the other for what was in flight."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np

from loadtest.drive import Outcome
from loadtest.measure import answers_by_status
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.replicas import behind_nginx
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal, timeline_of

CANDIDATES = 200
WITHIN_S = 0.25
"""How long after a kill nginx may still find the replica's connections broken."""
PATIENCE_S = 1.5
_FULL, _QUICK = 6, 1
_APART_S = (3.0, 4.0)
"""nginx may leave a replica that is back alone for up to two seconds; until then the other one is all there is."""


def run(settings: Settings) -> ScenarioResult:
    """Kill a replica with all it has in hand, start it again, and again."""
    rng = random.Random(settings.seed)
    settings = widened(settings, CANDIDATES)
    killed: list[float] = []
    ready: list[float] = []
    with behind_nginx(settings) as pair:
        with SteadyLoad(settings, pair.url) as load:
            for _ in range(settings.amount(_FULL, _QUICK)):
                time.sleep(rng.uniform(*_APART_S))
                replica = rng.choice(list(pair.replicas))
                killed.append(time.monotonic())
                replica.kill()
                time.sleep(rng.uniform(2.0, 3.0))  # the other one carries all
                replica.start()
                ready.append(time.monotonic())
            time.sleep(1.0)
        asked_twice = pair.asked_twice()
    outcome = load.outcome
    rescued = sum(str(line["status"]) == "200" for line in asked_twice)
    kills_s = [load.seconds(at) for at in killed]
    figures = {
        "requests": len(outcome.status),
        "answers": answers_by_status(outcome),
        "in_flight_at_kills": [int(_in_flight(outcome, [at_s], 0.0).sum()) for at_s in kills_s],
        "asked_of_both_replicas": len(asked_twice),
        "of_these_answered_200": rescued,
        "longest_answer_ms": round(float(np.max(outcome.latency_ns)) / 1e6, 1),
    }
    events = [(at_s, "SIGKILL") for at_s in kills_s] + [(load.seconds(at), "ready again") for at in ready]
    judged = checks(outcome, kills_s, len(asked_twice), rescued)
    return ScenarioResult(judged, figures, timeline_of(outcome, tuple(sorted(events))))


def checks(outcome: Outcome, kills_s: Sequence[float], asked_twice: int, rescued: int) -> tuple[Check, ...]:
    """Judge what callers saw and what nginx asked again."""
    failed = (outcome.status < 200) | (outcome.status >= 300)
    longest_s = float(np.max(outcome.latency_ns, initial=0)) / 1e9
    return (
        at_most("failed requests", int(failed.sum()), 0),
        at_most("of these not in flight at a kill", int((failed & ~_in_flight(outcome, kills_s, WITHIN_S)).sum()), 0),
        at_least("requests that nginx asked of both replicas", asked_twice, 1),
        equal("of these answered 200", rescued, asked_twice),
        at_most("longest answer", longest_s, PATIENCE_S, "s"),
    )


def _in_flight(
    outcome: Outcome, kills_s: Sequence[float], within_s: float
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    sent_s, ended_s = outcome.send_ns / 1e9, (outcome.send_ns + outcome.latency_ns) / 1e9
    found = np.zeros(len(sent_s), dtype=bool)
    for at_s in kills_s:
        found |= (sent_s <= at_s + within_s) & (ended_s >= at_s)
    return found


SCENARIO = Scenario(
    "kill-replica", "one of two replicas behind nginx is killed: nginx asks the other for what is lost", run, ("nginx",)
)
