"""One measured run: a load described by its settings, driven and turned into figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.arrivals import Arrivals, send_times_ns
from loadtest.drive import Plan, drive
from loadtest.errors import PlanInvalid, TargetInvalid
from loadtest.measure import Measurement, measure
from loadtest.traffic import Target


@dataclass(frozen=True)
class Load:
    """How hard, how long, and with what patience.

    Attributes:
        rate_per_s: mean rate of requests.
        duration_s: measured time; `warmup_s` before it runs at the same rate and is not counted.
        seed: fixes arrivals and the choice of bodies.
    """

    rate_per_s: float
    duration_s: float
    warmup_s: float = 2.0
    arrivals: Arrivals = "poisson"
    connections: int = 256
    timeout_s: float = 10.0
    seed: int = 1


def run_load(target: Target, requests: Sequence[bytes], load: Load) -> Measurement:
    """Drive the load against the target and return the figures.

    Args:
        target: where to send.
        requests: complete requests; each send picks one at random.
        load: the settings.

    Raises:
        PlanInvalid: a setting out of range.
        TargetInvalid: no connection is allowed.
        Unreachable: nothing listens there.
    """
    return measure(drive(plan_of(target, requests, load)), load.warmup_s, load.duration_s)


def plan_of(target: Target, requests: Sequence[bytes], load: Load) -> Plan:
    """Return what a load sends and when, warm-up included.

    Raises:
        PlanInvalid: a setting out of range.
        TargetInvalid: no connection is allowed.
    """
    if not (math.isfinite(load.warmup_s) and load.warmup_s >= 0):
        raise PlanInvalid("warm-up", found=load.warmup_s, expected="0 s or more")
    if not (math.isfinite(load.timeout_s) and load.timeout_s > 0):
        raise PlanInvalid("timeout", found=load.timeout_s, expected="more than 0 s")
    if load.connections < 1:
        raise TargetInvalid("connections", found=load.connections, expected="1 or more")
    if load.seed < 0:
        raise PlanInvalid("seed", found=load.seed, expected="0 or more")
    rng = np.random.default_rng(load.seed)
    if not (math.isfinite(load.duration_s) and load.duration_s > 0):
        raise PlanInvalid("duration", found=load.duration_s, expected="a positive number")
    send_ns = send_times_ns(load.rate_per_s, load.warmup_s + load.duration_s, load.arrivals, rng)
    picks = rng.integers(0, len(requests), len(send_ns), dtype=np.int32)
    return Plan(target, requests, send_ns, picks, connections=load.connections, timeout_s=load.timeout_s)
