"""Outcomes of a load, made up: what scenarios judge."""

from __future__ import annotations

import numpy as np

from loadtest.drive import DISCONNECTED, Outcome
from loadtest.scenarios.scenario import Check


def outcome(*changes: tuple[int, int, float], size: int = 1000) -> Outcome:
    """A request each 10 ms, answered 200 after 5 ms; but those of `changes`: (number, status, seconds)."""
    status, latency_s = np.full(size, 200, np.int16), np.full(size, 0.005)
    for number, code, seconds in changes:
        status[number], latency_s[number] = code, seconds
    send_ns = np.arange(size, dtype=np.int64) * 10_000_000
    return Outcome(send_ns, (latency_s * 1e9).astype(np.int64), np.zeros(size, np.int64), status, 4)


def failing(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


LOST = (500, DISCONNECTED, 0.02)
"""Sent at 5.0 s, lost 20 ms later."""
SLOW = (500, 200, 12.0)
