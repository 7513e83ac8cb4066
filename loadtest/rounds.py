"""Rounds of a comparison: the same load again and again, each with its own arrivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from loadtest.run import Load, run_load
from loadtest.traffic import Target

_PAUSE_S = 0.2


def round_runner(
    target: Target, requests: Sequence[bytes], load: Load, say: Callable[[str], None]
) -> Callable[[int], dict[str, float]]:
    """Return a function that measures one round by number; equal numbers get equal arrivals on every side."""

    def run(number: int) -> dict[str, float]:
        figures = run_load(target, requests, replace(load, seed=load.seed + number))
        time.sleep(_PAUSE_S)
        shown = {
            "p50_ms": figures.latency_ms["p50"],
            "p99_ms": figures.latency_ms["p99"],
            "achieved_rate": figures.achieved_rate,
            "error_share": figures.error_share,
            "lag_p99_ms": figures.lag_ms["p99"],
            "valid": float(figures.valid),
        }
        note = "" if figures.valid else f"  INVALID: {figures.why_invalid}"
        say(f"round {number + 1}: {target.url} p50 {shown['p50_ms']:.2f} ms, p99 {shown['p99_ms']:.2f} ms{note}")
        return shown

    return run
