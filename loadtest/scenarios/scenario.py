"""What a scenario is: a name, what it needs, and a function from settings to checks that passed or failed.

Knows nothing of any one scenario, and nothing of how a result is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.drive import Outcome


@dataclass(frozen=True)
class Settings:
    """What a scenario works with.

    Attributes:
        models: folder of `<name>/<version>/` bundles; not to be changed.
        fusion: fusion config that fits them; not to be changed.
        bodies: rank requests that fit them, JSON.
        folder: empty folder of the scenario's own, gone afterwards; logs and changed copies lie here.
        rate_per_s: steady rate of requests.
        seed: of arrivals, of bodies, and of what is struck.
        quick: little of it, for tests.
        minutes: how long the long ones take; None leaves it to them.
        say: shows a line of progress.
    """

    models: Path
    fusion: Path
    bodies: tuple[bytes, ...]
    folder: Path
    rate_per_s: float = 50.0
    seed: int = 1
    quick: bool = False
    minutes: float | None = None
    say: Callable[[str], None] = lambda line: None

    def amount(self, full: int, quick: int) -> int:
        """Return how often or how long something is done: `quick` in a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Check:
    """One property that was to hold: what was expected of it, what was found, and whether that is enough."""

    name: str
    expected: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Timeline:
    """What became of each request of a run, to be drawn.

    Attributes:
        at_s: intended send time, from the start.
        latency_ms: from then to the answer or the failure.
        ok: whether it was answered 2xx.
        events: what was done to the service, and when.
    """

    at_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    ok: NDArray[np.bool_]
    events: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class ScenarioResult:
    """What a scenario found.

    Attributes:
        checks: all of them must pass.
        figures: what was measured beside the checks, as JSON takes it; shown below the table.
        timeline: drawn by `--plot`, unless `draw` is given.
        draw: gives a PNG picture of its own.
    """

    checks: tuple[Check, ...]
    figures: Mapping[str, object] = field(default_factory=dict)
    timeline: Timeline | None = None
    draw: Callable[[], bytes] | None = None

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Scenario:
    """A fault and the promise about it.

    Attributes:
        name: as it is typed.
        summary: one line.
        run: starts what it needs on loopback, breaks it, and stops it whatever happens.
        needs: commands that the machine must have.
    """

    name: str
    summary: str
    run: Callable[[Settings], ScenarioResult]
    needs: tuple[str, ...] = ()


def at_most(name: str, found: float, limit: float, unit: str = "") -> Check:
    """Return the check that a figure is no higher than a limit; NaN fails."""
    return Check(name, _shown("≤ " if limit else "", limit, unit), _shown("", found, unit), bool(found <= limit))


def at_least(name: str, found: float, limit: float, unit: str = "") -> Check:
    """Return the check that a figure is no lower than a limit; NaN fails."""
    return Check(name, _shown("≥ ", limit, unit), _shown("", found, unit), bool(found >= limit))


def equal(name: str, found: object, expected: object) -> Check:
    """Return the check that something is what was expected."""
    return Check(name, f"{expected}", f"{found}", found == expected)


def timeline_of(outcome: Outcome, events: tuple[tuple[float, str], ...] = ()) -> Timeline:
    """Return an outcome as a timeline; the events' times count from its start."""
    ok = (outcome.status >= 200) & (outcome.status < 300)
    return Timeline(outcome.send_ns / 1e9, outcome.latency_ns / 1e6, ok, events)


def _shown(sign: str, value: float, unit: str) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 or value == round(value, 9) // 1 else f"{value:.3g}"
    return f"{sign}{text} {unit}".rstrip()
