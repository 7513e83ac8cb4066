"""What requests count and time, raised in place and not by prometheus-client's own calls.

A request counts and observes some twenty times; by those calls, each with a lock, that is a twentieth of a small
request's work. One of several workers raises the numbers where prometheus-client keeps them, in the worker's files, so
that nothing is lost when it is killed. A process alone raises numbers of its own, which each scrape hands over first.
Both stand on what prometheus-client calls its own; tests hold what is shown equal to what it counts itself.

Without the compiled tallies (`compiled_tally.pyx`) all is counted by prometheus-client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, RestrictedRegistry

__all__ = ["Counts", "Observes", "Stage", "Stages", "TalliedRegistry", "Tallies", "TimedStage", "compiled"]

try:
    from service import compiled_tally as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

_SIZE = 8
"""Bytes of a double."""
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


class Shows(Protocol):
    """What a gauge and its tally have in common."""

    def set(self, value: float) -> None:
        """Let it be this."""


class Tallies(Collector):
    """The tallies of one worker; shows nothing itself, but settles before those that are registered after it."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._settlers: list[Callable[[], None]] = []

    def count(self, counter: Counter) -> Counts:
        """Return what counts for a counter."""
        if compiled is None:
            return counter
        place, is_own = _place_of(counter._value)
        tally = compiled.Count(place)

        def settle() -> None:
            if total := tally.take():
                counter.inc(total)

        if is_own:
            self._settlers.append(settle)
        return tally

    def level(self, gauge: Gauge) -> Shows:
        """Return what is set for a gauge."""
        if compiled is None:
            return gauge
        place, is_own = _place_of(gauge._value)
        if is_own:
            self._settlers.append(lambda: gauge.set(place[0]))
        return compiled.Count(place)

    def observations(self, histogram: Histogram) -> Observes:
        """Return what observes for a histogram."""
        if compiled is None:
            return histogram
        values = [histogram._sum, *histogram._buckets]
        places = [_place_of(value) for value in values]
        tally = compiled.Observations(histogram._upper_bounds, [place for place, _ in places])

        def settle() -> None:
            for value, amount in zip(values, tally.take(), strict=True):
                if amount:
                    value.inc(amount)

        if any(is_own for _, is_own in places):
            self._settlers.append(settle)
        return tally

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


class TalliedRegistry(CollectorRegistry):
    """A registry that settles also when only some of its metrics are asked for, by their names."""

    def restricted_registry(self, names: Iterable[str]) -> RestrictedRegistry:
        """Return these metrics, all counted."""
        for collector in tuple(self._collector_to_names):
            if isinstance(collector, Tallies):
                collector.settle()
        return super().restricted_registry(names)


def _place_of(value: Any) -> tuple[memoryview[float], bool]:
    """Return where a value of prometheus-client lies in a worker's file, or a double of our own, and whether that.

    The file may grow, and then be mapped again: what was mapped before is still the same file.
    """
    if not hasattr(value, "_file"):
        return memoryview(bytearray(_SIZE)).cast("d"), True
    file = value._file
    begin = file._positions[value._key]
    return memoryview(file._m)[begin : begin + _SIZE].cast("d"), False


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
