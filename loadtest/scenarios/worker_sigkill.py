"""worker-sigkill: one of two workers is killed again and again; only what it had in hand may be lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from loadtest.drive import Outcome
from loadtest.measure import answers_by_status
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_most, equal, timeline_of
from loadtest.scenarios.stack import PATIENT, Ranker, serving_pids, until

WORKERS = 2
CANDIDATES = 300
REPLACED_WITHIN_S = 20.0
RACE_S = 0.25
"""A request may go out on a connection whose other end has just died; on a busy machine the sender learns it late."""
_FULL, _QUICK = 6, 1
_BETWEEN_S = (1.0, 2.0)


@dataclass(frozen=True)
class Kill:
    """One worker killed: when, from the load's start, and how long until another served (NaN: never)."""

    at_s: float
    replaced_s: float


@dataclass(frozen=True)
class Facts:
    """What was seen from outside: requests counted, workers replaced, requests in flight in the end."""

    counted: float
    restarts: float
    in_flight: float


def run(settings: Settings) -> ScenarioResult:
    """Kill workers under a steady load."""
    rng = random.Random(settings.seed)
    settings = widened(settings, CANDIDATES)
    moments: list[tuple[float, float]] = []
    with Ranker(settings, workers=WORKERS, environment=PATIENT) as ranker:
        before = ranker.metric("dlen_http_requests_total", route="/v1/rank")
        with SteadyLoad(settings, ranker.url) as load:
            for number in range(settings.amount(_FULL, _QUICK)):
                time.sleep(rng.uniform(*_BETWEEN_S))
                victim = rng.choice(ranker.worker_pids())
                at = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                replaced_s = until(partial(_all_serve, ranker, victim), REPLACED_WITHIN_S + 10)
                settings.say(f"kill {number + 1}: replaced in {replaced_s or float('nan'):.1f} s")
                moments.append((at, float("nan") if replaced_s is None else replaced_s))
            time.sleep(_BETWEEN_S[1])
        facts = Facts(
            counted=ranker.metric("dlen_http_requests_total", route="/v1/rank", status="200") - before,
            restarts=ranker.metric("dlen_worker_restarts_total"),
            in_flight=ranker.metric("dlen_rank_in_flight"),
        )
    kills = [Kill(load.seconds(at), replaced_s) for at, replaced_s in moments]
    figures = {
        "requests": len(load.outcome.status),
        "answers": answers_by_status(load.outcome),
        "in_flight_at_kills": [int(_in_flight(load.outcome, [kill], 0.0).sum()) for kill in kills],
        "replaced_s": [round(kill.replaced_s, 2) for kill in kills],
    }
    events = [(kill.at_s, "SIGKILL") for kill in kills]
    events += [(kill.at_s + kill.replaced_s, "replaced") for kill in kills if np.isfinite(kill.replaced_s)]
    return ScenarioResult(checks(load.outcome, kills, facts), figures, timeline_of(load.outcome, tuple(events)))


def checks(outcome: Outcome, kills: Sequence[Kill], facts: Facts) -> tuple[Check, ...]:
    """Judge what was sent and answered around the kills, and what the ranker counted of it."""
    failed = _failed(outcome)
    answered = len(failed) - int(failed.sum())
    counted = f"{answered:,} to {len(failed):,}"
    slowest_s = float(np.max([kill.replaced_s for kill in kills]))  # NaN stays NaN
    return (
        at_most("failed though not in flight at a kill", int((failed & ~_in_flight(outcome, kills, RACE_S)).sum()), 0),
        at_most("slowest replacement", slowest_s, REPLACED_WITHIN_S, "s"),
        equal("workers replaced, by the metrics", int(facts.restarts), len(kills)),
        Check(
            "answers 200, by the metrics", counted, f"{facts.counted:,.0f}", answered <= facts.counted <= len(failed)
        ),
        equal("requests in flight after, by the metrics", int(facts.in_flight), 0),
    )


def _failed(outcome: Outcome) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return (outcome.status < 200) | (outcome.status >= 300)


def _in_flight(outcome: Outcome, kills: Sequence[Kill], race_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which requests were on their way at some kill, or sent so soon after it."""
    sent_s, ended_s = outcome.send_ns / 1e9, (outcome.send_ns + outcome.latency_ns) / 1e9
    found = np.zeros(len(sent_s), dtype=bool)
    for kill in kills:
        found |= (sent_s <= kill.at_s + race_s) & (ended_s >= kill.at_s)
    return found


def _all_serve(ranker: Ranker, gone: int) -> bool:
    pids = serving_pids(ranker.url)
    return len(pids) == WORKERS and gone not in pids


SCENARIO = Scenario(
    "worker-sigkill", "a worker killed under load, several times: only its requests in flight fail, it is replaced", run
)
