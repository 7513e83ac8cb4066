"""worker-sigstop: one of two workers hangs; callers lose what its connections hold, and no more.

A hang that ends is waited out. One that does not is ended by the supervisor, which kills the worker and starts another.
Until then the kernel gives new connections to the other worker; requests on connections that the hung worker had
already taken wait until their callers give up.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np

from loadtest.drive import Outcome
from loadtest.measure import answers_by_status
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_most, equal, timeline_of
from loadtest.scenarios.stack import PATIENT, Ranker, connections_of, serving_pids, until

WORKERS = 2
CANDIDATES = 300
PATIENCE_S = 2.0
"""How long callers wait."""
REPLACED_WITHIN_S = 20.0
_SETTLE_S = 1.5


@dataclass(frozen=True)
class Facts:
    """What was seen of the two hangs.

    Attributes:
        held: connections that the stopped workers had, both times together.
        back_s: from SIGCONT until the worker answered again; NaN: never.
        replaced_after_s: from the second SIGSTOP until two other workers answered; NaN: never.
        hang_s: how long the supervisor lets a worker hang.
        restarts_short, restarts: workers replaced after the first hang, and in the end.
    """

    held: int
    back_s: float
    replaced_after_s: float
    hang_s: float
    restarts_short: float
    restarts: float


def run(settings: Settings) -> ScenarioResult:
    """Stop a worker for a while, then another one for good, under a steady load."""
    hang_s, short_s = (10.0, 5.0) if not settings.quick else (3.0, 1.5)
    settings = widened(settings, CANDIDATES)
    environment = {**PATIENT, "DLEN_HANG_SECONDS": str(hang_s)}
    moments: list[tuple[float, str]] = []
    with Ranker(settings, workers=WORKERS, environment=environment) as ranker:
        with SteadyLoad(settings, ranker.url, timeout_s=PATIENCE_S) as load:
            time.sleep(_SETTLE_S)
            victim, held = _stop_busiest(ranker)
            moments.append((time.monotonic(), "SIGSTOP"))
            time.sleep(short_s)
            os.kill(victim, signal.SIGCONT)
            moments.append((time.monotonic(), "SIGCONT"))
            back_s = until(lambda: victim in serving_pids(ranker.url), REPLACED_WITHIN_S)
            restarts_short = ranker.metric("dlen_worker_restarts_total")
            time.sleep(_SETTLE_S)
            gone, more = _stop_busiest(ranker)
            moments.append((time.monotonic(), "SIGSTOP, for good"))
            replaced_s = until(lambda: _replaced(ranker, gone), hang_s + REPLACED_WITHIN_S + 10)
            moments.append((time.monotonic(), "replaced"))
            time.sleep(_SETTLE_S)
        facts = Facts(
            held=held + more,
            back_s=float("nan") if back_s is None else back_s,
            replaced_after_s=float("nan") if replaced_s is None else replaced_s,
            hang_s=hang_s,
            restarts_short=restarts_short,
            restarts=ranker.metric("dlen_worker_restarts_total"),
        )
    outcome = load.outcome
    figures = {
        "requests": len(outcome.status),
        "answers": answers_by_status(outcome),
        "connections_of_the_stopped": facts.held,
        "back_s": round(facts.back_s, 2),
        "replaced_s_after_sigstop": round(facts.replaced_after_s, 2),
    }
    events = tuple((load.seconds(at), name) for at, name in moments)
    return ScenarioResult(checks(outcome, facts), figures, timeline_of(outcome, events))


def checks(outcome: Outcome, facts: Facts) -> tuple[Check, ...]:
    """Judge what callers saw, and what became of the workers."""
    failed = int(((outcome.status < 200) | (outcome.status >= 300)).sum())
    longest_s = float(np.max(outcome.latency_ns, initial=0)) / 1e9
    return (
        at_most("failed, of the connections held", failed, facts.held),
        at_most(f"longest that a caller who waits {PATIENCE_S:g} s waited", longest_s, PATIENCE_S + 0.5, "s"),
        at_most("a worker that goes on serves again after", facts.back_s, PATIENCE_S, "s"),
        equal("workers replaced for a hang that ended", int(facts.restarts_short), 0),
        at_most("one that hangs is replaced after", facts.replaced_after_s, facts.hang_s + REPLACED_WITHIN_S, "s"),
        equal("workers replaced, by the metrics", int(facts.restarts), 1),
    )


def _stop_busiest(ranker: Ranker) -> tuple[int, int]:
    """Stop the worker with most connections; return its process and their number."""
    held = {pid: connections_of(pid, ranker.port) for pid in ranker.worker_pids()}
    victim = max(held, key=lambda pid: held[pid])
    os.kill(victim, signal.SIGSTOP)
    return victim, connections_of(victim, ranker.port)


def _replaced(ranker: Ranker, gone: int) -> bool:
    pids = serving_pids(ranker.url)
    return len(pids) == WORKERS and gone not in pids


SCENARIO = Scenario(
    "worker-sigstop", "a worker that hangs, for a while and for good: callers lose what it held, it is replaced", run
)
