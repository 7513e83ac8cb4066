"""The figures of a run: percentiles, rates, errors by status, the generator's own lag, and whether to believe them.

Knows nothing of sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from loadtest.drive import FAILURES, Outcome

HIGHEST_US = 3_600_000_000
DIGITS = 3
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
MAX_LAG_SHARE = 0.05


@dataclass(frozen=True)
class Second:
    """One second of a run, by intended send time; times in ms, NaN where nothing was answered."""

    at_s: int
    planned: int
    ok: int
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Measurement:
    """What a run showed, without its warm-up.

    Attributes:
        duration_s: length of the measured part.
        planned: requests whose intended send time lies in it.
        offered_rate: planned per second; achieved_rate: 2xx answers per second of the time until the last came.
        ok: requests answered 2xx.
        statuses: count by HTTP status or kind of failure, most frequent first.
        latency_ms: percentiles (`p50` … `p99.9`), `mean` and `max` of 2xx answers, from the intended send time.
        all_latency_ms: the same for every request, whatever became of it.
        lag_ms: the generator's own lateness in taking requests up.
        connections: connections opened, warm-up included.
        valid: false when the figures are the generator's as much as the server's; `why_invalid` says why.
        histogram: the HdrHistogram of 2xx latencies in µs, encoded (base64 of V2, compressed).
        seconds: the timeline.
    """

    duration_s: float
    planned: int
    offered_rate: float
    achieved_rate: float
    ok: int
    statuses: dict[str, int]
    latency_ms: dict[str, float]
    all_latency_ms: dict[str, float]
    lag_ms: dict[str, float]
    connections: int
    valid: bool
    why_invalid: str | None
    histogram: str
    seconds: tuple[Second, ...]

    @property
    def error_share(self) -> float:
        """Share of requests that were not answered 2xx."""
        return 1.0 - self.ok / self.planned if self.planned else 0.0


def measure(outcome: Outcome, warmup_s: float, duration_s: float) -> Measurement:
    """Return the figures of the requests meant to be sent in [warmup_s, warmup_s + duration_s)."""
    first, last = np.searchsorted(outcome.send_ns, (warmup_s * 1e9, (warmup_s + duration_s) * 1e9))
    send_ns = outcome.send_ns[first:last]
    latency_us = outcome.latency_ns[first:last] / 1e3
    status = outcome.status[first:last]
    ok = (status >= 200) & (status < 300)
    histogram = histogram_of(latency_us[ok])
    lag = summary_ms(histogram_of(outcome.lag_ns[first:last] / 1e3))
    latency = summary_ms(histogram)
    answered_s = (send_ns[ok] + outcome.latency_ns[first:last][ok]) / 1e9 - warmup_s
    span_s = max(duration_s, float(answered_s.max())) if ok.any() else duration_s
    why = _why_invalid(lag, latency, planned=len(send_ns), ok=int(ok.sum()))
    return Measurement(
        duration_s=duration_s,
        planned=len(send_ns),
        offered_rate=len(send_ns) / duration_s,
        achieved_rate=int(ok.sum()) / span_s,
        ok=int(ok.sum()),
        statuses=_by_status(status),
        latency_ms=latency,
        all_latency_ms=summary_ms(histogram_of(latency_us)),
        lag_ms=lag,
        connections=outcome.connections,
        valid=why is None,
        why_invalid=why,
        histogram=histogram.encode().decode(),
        seconds=_timeline(send_ns / 1e9 - warmup_s, latency_us, ok),
    )


def histogram_of(value_us: NDArray[np.float64]) -> Any:
    """Return an HdrHistogram (3 digits, 1 µs to 1 h) of values in µs; what lies outside is moved to the edge."""
    histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
    whole, counts = np.unique(np.clip(np.rint(value_us), 1, HIGHEST_US).astype(np.int64), return_counts=True)
    for value, count in zip(whole.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return histogram


def decode_histogram(encoded: str) -> Any:
    """Return the HdrHistogram of a `Measurement.histogram`."""
    return HdrHistogram.decode(encoded.encode())


def summary_ms(histogram: Any) -> dict[str, float]:
    """Return percentiles, mean and maximum in ms; NaN when the histogram is empty."""
    if not histogram.get_total_count():
        return {name: float("nan") for name in (*map(percentile_name, PERCENTILES), "mean", "max")}
    figures = {percentile_name(p): histogram.get_value_at_percentile(p) / 1e3 for p in PERCENTILES}
    return figures | {"mean": histogram.get_mean_value() / 1e3, "max": histogram.get_max_value() / 1e3}


def percentile_name(percentile: float) -> str:
    """Return `p99` or `p99.9`."""
    return f"p{percentile:g}"


def _why_invalid(lag: dict[str, float], latency: dict[str, float], *, planned: int, ok: int) -> str | None:
    if not planned:
        return "no request fell into the measured time"
    if not ok:
        return "no request was answered 2xx"
    limit_ms = MAX_LAG_SHARE * latency["p99"]
    if lag["p99"] > limit_ms:
        return (
            f"the generator's own lag p99 is {lag['p99']:.3f} ms, over {MAX_LAG_SHARE:.0%} of the latency p99 "
            f"({latency['p99']:.3f} ms)"
        )
    return None


def answers_by_status(outcome: Outcome) -> dict[str, int]:
    """Return how many requests were answered with each HTTP status or failed in each way, most frequent first."""
    return _by_status(outcome.status)


def _by_status(status: NDArray[np.int16]) -> dict[str, int]:
    values, counts = np.unique(status, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {FAILURES.get(int(values[i]), str(int(values[i]))): int(counts[i]) for i in order}


def _timeline(at_s: NDArray[np.float64], latency_us: NDArray[np.float64], ok: NDArray[np.bool_]) -> tuple[Second, ...]:
    if not len(at_s):
        return ()
    ends = np.searchsorted(at_s, np.arange(int(at_s[-1]) + 2))
    seconds = []
    for second, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        good = latency_us[start:end][ok[start:end]] / 1e3
        p50, p99, top = np.percentile(good, (50, 99, 100)).tolist() if len(good) else (float("nan"),) * 3
        seconds.append(Second(second, end - start, len(good), end - start - len(good), p50, p99, top))
    return tuple(seconds)
