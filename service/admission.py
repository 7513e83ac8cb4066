"""Who is let in: a bounded number of requests at a time, each with a deadline; nobody waits without bound.

The limit follows what requests are measured to take: with `threads` computing and s seconds each, the request
that is let in last waits about (limit − threads)·s / threads, and the limit is set so that this is `queue_ms` at
most (Little's law). It so shrinks when requests grow or the machine slows, and is back as soon as they do. A request
whose deadline is too near to wait that long meets a lower limit: it is told at once, not dropped later unscored.

Lives on the event loop's thread, so it needs no lock. Knows nothing of what a request asks for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from msgspec import Struct

from service.errors import DeadlineExceeded, HeaderInvalid, Overloaded
from service.metrics import Metrics
from service.settings import Settings

DEADLINE_HEADER = "x-request-deadline-ms"
LONGEST_DEADLINE_MS = 600_000
SMOOTHING = 0.05
"""Weight of the newest request in the mean time that requests take."""
WAIT_SHARE = 0.6
"""How much of a deadline a request may be expected to wait for a thread; the rest is to compute and answer in."""
ANSWER_SECONDS = 0.005
"""What is kept of a deadline to answer in, when the model overruns it."""


class Deadline(Struct, frozen=True):
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
        self._shed = metrics.tallies.count(metrics.shed.labels("limit"))
        self._mean_seconds = 0.0
        self.limit = settings.max_in_flight
        self.in_flight = 0
        self._shown_limit = metrics.tallies.level(metrics.limit)
        self._shown_in_flight = metrics.tallies.level(metrics.in_flight)
        self._shown_limit.set(self.limit)
        self._shown_in_flight.set(0)

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

    def limit_for(self, budget_ms: int) -> int:
        """Return how many requests may be held for another one with this deadline to come in."""
        threads = self._settings.threads
        in_time = threads * WAIT_SHARE * budget_ms / 1000 / max(self._mean_seconds, 1e-6)
        return min(self.limit, max(threads, int(in_time)))

    def room_by(self, text: str | None) -> bool:
        """Return whether a permit is free for a request whose deadline header says this; what it says is not judged."""
        if not self.has_room:
            return False
        if self.in_flight < self._settings.threads:
            return True
        asked = text is not None and text.isascii() and text.isdecimal() and len(text) < 10
        return self.in_flight < self.limit_for(int(text or 0) if asked else self._settings.deadline_ms)

    def refusal(self) -> Overloaded:
        """Return what a request that finds no permit is answered; `count_shed` counts it."""
        return Overloaded(
            "requests in flight",
            found=self.in_flight,
            expected=f"fewer than {min(self.limit, self.in_flight)}",
            retry_after_seconds=self._settings.retry_after_seconds,
        )

    def count_shed(self) -> None:
        """Count a request that found no permit."""
        self._shed.inc()

    def take(self, budget_ms: int | None = None) -> None:
        """Take a permit, for a request with this deadline; whoever does must `give_back` it.

        Raises:
            Overloaded: none is free.
        """
        if self.in_flight >= (self.limit if budget_ms is None else self.limit_for(budget_ms)):
            self.count_shed()
            raise self.refusal()
        self.in_flight += 1
        self._shown_in_flight.set(self.in_flight)

    def give_back(self, computed_seconds: float | None) -> None:
        """Return a permit; `computed_seconds` is what its request took of a thread, None where it took nothing."""
        self.in_flight -= 1
        self._shown_in_flight.set(self.in_flight)
        if computed_seconds is None:
            return
        weight = SMOOTHING if self._mean_seconds else 1.0
        self._mean_seconds += weight * (computed_seconds - self._mean_seconds)
        self._adapt()

    def _adapt(self) -> None:
        settings = self._settings
        waiting = settings.queue_ms / 1000 / max(self._mean_seconds, 1e-6)
        limit = int(min(settings.threads * (1 + waiting), settings.max_in_flight))
        self.limit = max(limit, min(settings.threads + 1, settings.max_in_flight))
        self._shown_limit.set(self.limit)
