"""overload: a ranker asked for 0.5, 1, 2 and 10 times what it can compute keeps computing, refuses at once, recovers.

Ranker and load each have a core of their own where there are two. What the ranker can compute is measured before and
after each level, in a closed loop: a shared machine is not as fast now as it was a minute ago. A burst of ten times as
much in a light load then shows how soon all is as before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import send_times_ns
from loadtest.drive import Outcome, Plan, drive
from loadtest.peers.closed_loop import drive_closed
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.cores import a_core_each
from loadtest.scenarios.levels import DEADLINE_MS, Level, level_of
from loadtest.scenarios.overload_plot import plot_overload
from loadtest.scenarios.recovery import Recovery, recovery_of
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal
from loadtest.scenarios.stack import Ranker
from loadtest.traffic import Target, build_requests, parse_target

CANDIDATES = 100
"""Bodies with fewer are widened: of a tiny request, to read it is most of the work, and nothing is won by a refusal."""
TIGHT_MS = 100
LEVELS = ((0.5, DEADLINE_MS), (1.0, DEADLINE_MS), (2.0, DEADLINE_MS), (10.0, DEADLINE_MS), (2.0, TIGHT_MS))
"""Shares of the capacity, and the deadline asked for: one as near as the longest that requests may have to wait."""
LIGHT, BURST = 0.5, 10.0
REFUSED_MS, RECOVERED_S = 10.0, 5.0
GOODPUT = {2.0: 0.85, 10.0: 0.75}
"""At so many times the capacity, so much of it must be answered."""
_CLOSED_CONNECTIONS, _CONNECTIONS = 8, 512
_TIMEOUT_S = 5.0
_REFUSED = (503, 504)


@dataclass(frozen=True)
class Facts:
    """What the scenario saw.

    Attributes:
        levels: in the order of `LEVELS`, each with the capacity around it.
        recovery: of the burst.
        refused: answers 503 and 504 in all, as the load counted them, and counted: as the ranker's metrics did.
        degraded: answers in fallback order, by the metrics.
        pinned: whether ranker and load had a core each.
    """

    levels: tuple[Level, ...]
    recovery: Recovery
    refused: int
    counted: float
    degraded: float
    pinned: bool


def run(settings: Settings) -> ScenarioResult:
    """Find the capacity, ask for shares of it, then for a burst."""
    settings = replace(settings, bodies=enough_candidates(settings))
    outcomes = []
    with a_core_each() as cores:
        cores.take_for_ranker()
        with Ranker(settings, environment={"DLEN_DEADLINE_MS": str(DEADLINE_MS)}) as ranker:
            cores.take_for_load()
            target = parse_target(ranker.url)
            requests = build_requests(target, settings.bodies)
            capacity_per_s = _capacity(target, requests, settings)
            settings.say(f"capacity {capacity_per_s:.0f} requests/s of {_candidates(settings.bodies)} candidates")
            levels, counted = [], 0.0
            warmup_s, duration_s = (settings.amount(full, 5) / 10 for full in (15, 100))
            for share, deadline_ms in LEVELS:
                times_ns = _times([(share * capacity_per_s, warmup_s + duration_s)], settings.seed)
                asking = parse_target(ranker.url, [f"X-Request-Deadline-Ms: {deadline_ms}"])
                requests = build_requests(asking, settings.bodies)
                time.sleep(settings.amount(5, 1) / 10)
                outcome, shed = _drive(ranker, asking, requests, times_ns, settings.seed)
                outcomes.append(outcome)
                counted += shed
                time.sleep(settings.amount(5, 1) / 10)
                before_per_s, capacity_per_s = capacity_per_s, _capacity(target, requests, settings)
                around_per_s = (before_per_s + capacity_per_s) / 2
                levels.append(level_of(outcomes[-1], share, deadline_ms, warmup_s, duration_s, around_per_s))
                settings.say(_line(levels[-1]))
            before_s, burst_s, after_s = (float(settings.amount(full, 1)) for full in (6, 5, 12))
            parts = [(LIGHT, before_s), (BURST, burst_s), (LIGHT, after_s)]
            times_ns = _times([(share * capacity_per_s, length_s) for share, length_s in parts], settings.seed)
            last, shed = _drive(ranker, target, requests, times_ns, settings.seed)
            outcomes.append(last)
            facts = Facts(
                levels=tuple(levels),
                recovery=recovery_of(last, before_s, before_s + burst_s),
                refused=sum(int(np.isin(outcome.status, _REFUSED).sum()) for outcome in outcomes),
                counted=counted + shed,
                degraded=ranker.metric("dlen_rank_degraded_total"),
                pinned=cores.one_each,
            )
    return ScenarioResult(
        checks(facts),
        figures(facts),
        draw=lambda: plot_overload(facts.levels, last, (before_s, before_s + burst_s)),
    )


def checks(facts: Facts) -> tuple[Check, ...]:
    """Judge an overload."""
    found: list[Check] = []
    for level in facts.levels:
        at = f"at {level.name}"
        if level.share in GOODPUT:
            wanted = 100 * GOODPUT[level.share]
            found.append(at_least(f"goodput {at}", 100 * level.of_capacity, wanted, "% of capacity"))
            found.append(at_most(f"503 answered {at}, p99", level.refused_ms[1], REFUSED_MS, "ms"))
        found.append(at_most(f"accepted answered {at}, p99", level.good_ms[1], level.deadline_ms, "ms"))
        found.append(at_most(f"neither 2xx nor 503 nor 504 {at}", level.failed, 0))
    return (
        *found,
        at_most("after the burst as before it", facts.recovery.seconds, RECOVERED_S, "s"),
        equal("refused by the metrics, as many as the load saw", int(facts.counted), facts.refused),
    )


def figures(facts: Facts) -> dict[str, object]:
    """Return what was measured beside the checks."""
    levels = {
        level.name.replace("×", "x"): {
            "offered_per_s": round(level.offered_per_s, 1),
            "good_per_s": round(level.good_per_s, 1),
            "capacity_per_s": round(level.capacity_per_s, 1),
            "of_capacity": round(level.of_capacity, 3),
            "good_p50_p99_ms": [_rounded(value) for value in level.good_ms],
            "refused_p50_p99_ms": [_rounded(value) for value in level.refused_ms],
            "503": level.refused,
            "504": level.expired,
            "own_lag_p99_ms": _rounded(level.lag_ms),
        }
        for level in facts.levels
    }
    recovery = facts.recovery
    return {
        **levels,
        "recovery": {
            "seconds": _rounded(recovery.seconds),
            "before_p99_ms": _rounded(recovery.before_ms),
            "after_p99_ms": _rounded(recovery.after_ms),
        },
        "degraded": facts.degraded,
        "a_core_each": facts.pinned,
    }


def enough_candidates(settings: Settings) -> tuple[bytes, ...]:
    """Return the bodies, those with few candidates widened."""
    wide = widened(settings, CANDIDATES).bodies
    return tuple(
        more if _candidates([body]) < CANDIDATES else body for body, more in zip(settings.bodies, wide, strict=True)
    )


def _candidates(bodies: Sequence[bytes]) -> int:
    """Return the first body's number of candidates, however it gives them."""
    given = json.loads(bodies[0]).get("candidates", ())
    return len(given.get("id", ()) if isinstance(given, dict) else given)


def _capacity(target: Target, requests: Sequence[bytes], settings: Settings) -> float:
    answered = drive_closed(
        target.host,
        target.port,
        requests,
        connections=_CLOSED_CONNECTIONS,
        warmup_s=float(settings.amount(2, 1)),
        duration_s=float(settings.amount(6, 1)),
        cpu_s=time.process_time,
    )
    return answered.requests / answered.seconds


def _shed(ranker: Ranker) -> float:
    """Return the answers 503 and 504 up to now: the load between measures of capacity is judged, not those."""
    return sum(ranker.metric("dlen_rank_shed_total", reason=reason) for reason in ("limit", "deadline"))


def _times(parts: Sequence[tuple[float, float]], seed: int) -> NDArray[np.int64]:
    """Return send times of several rates one after another, each given with its seconds."""
    rng = np.random.default_rng(seed)
    times, start_s = [], 0.0
    for rate_per_s, length_s in parts:
        times.append(send_times_ns(rate_per_s, length_s, "poisson", rng) + int(start_s * 1e9))
        start_s += length_s
    return np.concatenate(times)


def _drive(
    ranker: Ranker, target: Target, requests: Sequence[bytes], times_ns: NDArray[np.int64], seed: int
) -> tuple[Outcome, float]:
    """Return how a load went, and how many of it the ranker says it refused."""
    already = _shed(ranker)
    picks = np.random.default_rng(seed).integers(0, len(requests), len(times_ns), dtype=np.int32)
    outcome = drive(Plan(target, requests, times_ns, picks, connections=_CONNECTIONS, timeout_s=_TIMEOUT_S))
    return outcome, _shed(ranker) - already


def _line(level: Level) -> str:
    text = f"{level.name}: {level.good_per_s:.0f} of {level.offered_per_s:.0f} requests/s answered"
    text += f" ({level.of_capacity:.0%} of capacity), p99 {level.good_ms[1]:.1f} ms"
    return text + (f"; {level.refused} × 503, p99 {level.refused_ms[1]:.1f} ms" if level.refused else "")


def _rounded(value: float) -> float | None:
    return round(value, 2) if np.isfinite(value) else None


SCENARIO = Scenario(
    "overload", "0.5 to 10 times what can be computed: goodput stays, refusals are quick, all is soon as before", run
)
