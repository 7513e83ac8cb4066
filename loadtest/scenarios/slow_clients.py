"""slow-clients: nginx holds hundreds of slow sockets, and the good traffic beside them is served as without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np

from loadtest.compare import Ratio, compare, measure_rounds
from loadtest.measure import Measurement
from loadtest.run import Load, run_load
from loadtest.scenarios.replicas import Pair, behind_nginx
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal
from loadtest.scenarios.slow_sockets import slow_sockets
from loadtest.scenarios.stack import PATIENT
from loadtest.traffic import build_requests, parse_target

MOST_RATIO = 1.20
_SOCKETS, _QUICK_SOCKETS = 500, 60
_ROUNDS, _QUICK_ROUNDS = 12, 3
_ROUND_S, _QUICK_ROUND_S = 5, 1
_RATE_FACTOR = 2


def run(settings: Settings) -> ScenarioResult:
    """Measure paired rounds with and without slow sockets beside the good traffic."""
    sockets = settings.amount(_SOCKETS, _QUICK_SOCKETS)
    rounds = settings.amount(_ROUNDS, _QUICK_ROUNDS)
    measured: list[Measurement] = []
    left: list[int] = []
    with behind_nginx(settings, PATIENT) as pair:
        good = _good_traffic(settings, pair, measured)
        address = urlsplit(pair.url)
        good(-1)
        measured.clear()
        before = _reached(pair)

        def beside(number: int) -> dict[str, float]:
            with slow_sockets(str(address.hostname), int(address.port or 80), sockets) as pipe:
                figures = good(number)
                pipe.send("how many")
                left.append(pipe.recv())
            settings.say(f"round {number + 1} of {rounds}: p99 {figures['p99_ms']:.1f} ms beside {left[-1]} sockets")
            return figures

        ours, theirs = measure_rounds(beside, good, rounds)
        reached = _reached(pair) - before
    ratios = {ratio.figure: ratio for ratio in compare(ours, theirs, MOST_RATIO - 1).ratios}
    p99 = ratios["p99_ms"]
    sent, failed = sum(one.planned for one in measured), sum(one.planned - one.ok for one in measured)
    figures = {
        "requests": sent,
        "answers": dict(sum((Counter(one.statuses) for one in measured), Counter())),
        "slow_sockets_left": left,
        **{
            f"{name}_without_and_with": [round(ratios[name].reference, 2), round(ratios[name].candidate, 2)]
            for name in ("p50_ms", "p99_ms")
        },
        "p99_ratio_mean_and_95%_interval": [round(x, 3) for x in (p99.mean, p99.low, p99.high)],
        "p99_ratio_by_round": [round(ratio, 2) for ratio in p99.by_round],
    }
    return ScenarioResult(checks(p99, failed, reached - sent, min(left), sockets), figures)


def checks(p99: Ratio, failed: int, strayed: float, left: int, sockets: int) -> tuple[Check, ...]:
    """Judge the rounds with slow sockets against those without; a burst of other work spoils a pair, not the median."""
    return (
        at_most("p99 with them ÷ without, median of pairs", float(np.median(p99.by_round)), MOST_RATIO),
        at_most("failed good requests", failed, 0),
        equal("slow requests that reached a ranker", int(strayed), 0),
        at_least("slow sockets open to the end", left, int(0.9 * sockets)),
    )


def _good_traffic(settings: Settings, pair: Pair, measured: list[Measurement]) -> Callable[[int], dict[str, float]]:
    """Return a function that measures one round, always the same arrivals."""
    target = parse_target(pair.url)
    requests = build_requests(target, settings.bodies)
    duration_s = float(settings.amount(_ROUND_S, _QUICK_ROUND_S))

    def measure_round(number: int) -> dict[str, float]:
        load = Load(_RATE_FACTOR * settings.rate_per_s, duration_s, warmup_s=0.0, seed=settings.seed + max(number, 0))
        found = run_load(target, requests, load)
        measured.append(found)
        latency = found.latency_ms
        return {"p50_ms": latency["p50"], "p99_ms": latency["p99"], "achieved_rate": found.achieved_rate}

    return measure_round


def _reached(pair: Pair) -> float:
    """Return how many rank requests the rankers were asked."""
    return sum(replica.metric("dlen_http_requests_total", route="/v1/rank") for replica in pair.replicas)


SCENARIO = Scenario(
    "slow-clients", "500 slow sockets at nginx: the p99 of the good traffic moves by 20 % at most", run, ("nginx",)
)
