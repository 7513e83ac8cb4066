"""What requests count and time on its way to prometheus-client: added up by compiled tallies, handed over later.

A request counts and observes some twenty times; by prometheus-client's own calls, each with a lock, that is a twentieth
of a small request's work. `Tallies.settle` hands over what has gathered: at each scrape of the process, ten times a
second (of several workers the supervisor reads the files) and at the end, so that a worker that is killed loses a tenth
of a second of its counts.

Without the compiled tallies (`compiled_tally.pyx`) all is counted by prometheus-client at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["Counts", "Observes", "Stage", "Stages", "Tallies", "TimedStage", "compiled"]

try:
    from service import compiled_tally as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

Stages = list[tuple[str, float, float]]
"""Name, start and end of each, on the clock of `time.perf_counter`."""


class Counts(Protocol):
    """What a counter and its tally have in common."""

    def inc(self, amount: float = 1) -> None:
        """Add to it."""


class Observes(Protocol):
    """What a histogram and its tally have in common."""

    def observe(self, amount: float) -> None:
        """Add one observation."""


class Tallies(Collector):
    """The tallies of one worker; shows nothing itself, but settles before those that are registered after it."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._settlers: list[Callable[[], None]] = []

    def count(self, counter: Counter) -> Counts:
        """Return what counts for a counter."""
        if compiled is None:
            return counter
        tally = compiled.Count()

        def settle() -> None:
            if total := tally.take():
                counter.inc(total)

        self._settlers.append(settle)
        return tally

    def observations(self, histogram: Histogram) -> Observes:
        """Return what observes for a histogram.

        It stands on what prometheus-client calls its own (a test holds both equal): bounds, their counters, the sum.
        """
        if compiled is None:
            return histogram
        tally = compiled.Observations(histogram._upper_bounds)

        def settle() -> None:
            if (taken := tally.take()) is None:
                return
            total, counts = taken
            histogram._sum.inc(total)
            for bucket, count in zip(histogram._buckets, counts, strict=True):
                if count:
                    bucket.inc(count)

        self._settlers.append(settle)
        return tally

    def show(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge show a value as it is whenever it is settled."""
        self._settlers.append(lambda: gauge.set(value()))

    def settle(self) -> None:
        """Hand over to prometheus-client what has gathered."""
        for settle in tuple(self._settlers):
            settle()

    def collect(self) -> Iterable[Metric]:
        """Settle; there is nothing to show."""
        self.settle()
        return ()

    def describe(self) -> Iterable[Metric]:
        """Name no metric."""
        return ()


class TimedStage:
    """What `compiled_tally.Stage` is, where that was not built."""

    __slots__ = ("_name", "_seconds", "_stages", "_start")

    def __init__(self, name: str, stages: Stages, seconds: Observes) -> None:
        """Note the stage in `stages` and its seconds in `seconds`."""
        self._name, self._stages, self._seconds = name, stages, seconds

    def __enter__(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Stop it."""
        end = time.perf_counter()
        self._stages.append((self._name, self._start, end))
        self._seconds.observe(end - self._start)


Stage: Callable[[str, Stages, Observes], AbstractContextManager[None]] = TimedStage
if compiled is not None:
    Stage = compiled.Stage  # type: ignore[assignment]  # with compiled tallies all observe by them
