"""Who is let in: a bounded number of requests at a time, each with a deadline; nobody waits without bound.

The limit follows what requests are measured to take: with `threads` computing and s seconds each, the request
that is let in last waits about (limit − threads)·s / threads, and the limit is set so that this is `queue_ms` at
most (Little's law). It so shrinks when requests grow or the machine slows, and is back as soon as they do.

Lives on the event loop's thread, so it needs no lock. Knows nothing of what a request asks for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import DeadlineExceeded, HeaderInvalid, Overloaded
from service.metrics import Metrics
from service.settings import Settings

DEADLINE_HEADER = "x-request-deadline-ms"
LONGEST_DEADLINE_MS = 600_000
SMOOTHING = 0.05
"""Weight of the newest request in the mean time that requests take."""
ANSWER_SECONDS = 0.005
"""What is kept of a deadline to answer in, when the model overruns it."""


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock after which nobody waits for the answer."""

    at: float
    budget_ms: int

    def check(self, stage: str) -> None:
        """Check that there is time left.

        Raises:
            DeadlineExceeded: there is none.
        """
        late = time.monotonic() - self.at
        if late > 0:
            raise DeadlineExceeded(
                f"deadline before {stage}", found=f"{late * 1000:.0f} ms late", expected=f"{self.budget_ms} ms at most"
            )

    @property
    def seconds_to_compute(self) -> float:
        """Seconds left until an answer has to be written, whatever it is."""
        return max(0.0, self.at - time.monotonic() - min(ANSWER_SECONDS, self.budget_ms / 5000))


class Admission:
    """Hands out permits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Start with every permit free."""
        self._settings = settings
        self._metrics = metrics
        self._shed = metrics.shed.labels("limit")
        self._mean_seconds = 0.0
        self.limit = settings.max_in_flight
        self.in_flight = 0
        metrics.limit.set(self.limit)
        metrics.in_flight.set(0)

    def deadline(self, headers: Mapping[str, str]) -> Deadline:
        """Return the deadline that a request's headers ask for, counted from now.

        Raises:
            HeaderInvalid: not a number of milliseconds from 1 to 600,000.
        """
        text = headers.get(DEADLINE_HEADER)
        if text is None:
            budget_ms = self._settings.deadline_ms
        elif text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= LONGEST_DEADLINE_MS:
            budget_ms = int(text)
        else:
            raise HeaderInvalid(
                "header X-Request-Deadline-Ms", found=repr(text[:40]), expected=f"1 to {LONGEST_DEADLINE_MS}"
            )
        return Deadline(time.monotonic() + budget_ms / 1000, budget_ms)

    @property
    def has_room(self) -> bool:
        """Whether a permit is free."""
        return self.in_flight < self.limit

    def refusal(self) -> Overloaded:
        """Count a request that finds no permit; return what it is answered."""
        self._shed.inc()
        return Overloaded(
            "requests in flight",
            found=self.in_flight,
            expected=f"fewer than {self.limit}",
            retry_after_seconds=self._settings.retry_after_seconds,
        )

    def take(self) -> None:
        """Take a permit; whoever does must `give_back` it.

        Raises:
            Overloaded: none is free.
        """
        if not self.has_room:
            raise self.refusal()
        self.in_flight += 1
        self._metrics.in_flight.set(self.in_flight)

    def give_back(self, computed_seconds: float | None) -> None:
        """Return a permit; `computed_seconds` is what its request took of a thread, None where it took nothing."""
        self.in_flight -= 1
        self._metrics.in_flight.set(self.in_flight)
        if computed_seconds is None:
            return
        weight = SMOOTHING if self._mean_seconds else 1.0
        self._mean_seconds += weight * (computed_seconds - self._mean_seconds)
        self._adapt()

    def _adapt(self) -> None:
        settings = self._settings
        waiting = settings.queue_ms / 1000 / max(self._mean_seconds, 1e-6)
        limit = int(min(settings.threads * (1 + waiting), settings.max_in_flight))
        limit = max(limit, min(settings.threads + 1, settings.max_in_flight))
        if limit != self.limit:
            self.limit = limit
            self._metrics.limit.set(limit)
