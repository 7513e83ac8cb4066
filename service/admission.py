"""Who is let in: a bounded number of requests at a time, each with a deadline; nobody waits without bound.

Lives on the event loop's thread, so it needs no lock. Knows nothing of what a request asks for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import DeadlineExceeded, HeaderInvalid, Overloaded
from service.metrics import Metrics
from service.settings import Settings

DEADLINE_HEADER = "x-request-deadline-ms"
LONGEST_DEADLINE_MS = 600_000


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


class Admission:
    """Hands out permits."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Start with every permit free."""
        self._limit = settings.max_in_flight
        self._retry_after_seconds = settings.retry_after_seconds
        self._deadline_ms = settings.deadline_ms
        self._metrics = metrics
        self.in_flight = 0
        metrics.limit.set(self._limit)
        metrics.in_flight.set(0)

    def deadline(self, headers: Mapping[str, str]) -> Deadline:
        """Return the deadline that a request's headers ask for, counted from now.

        Raises:
            HeaderInvalid: not a number of milliseconds from 1 to 600,000.
        """
        text = headers.get(DEADLINE_HEADER)
        if text is None:
            budget_ms = self._deadline_ms
        elif text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= LONGEST_DEADLINE_MS:
            budget_ms = int(text)
        else:
            raise HeaderInvalid(
                "header X-Request-Deadline-Ms", found=repr(text[:40]), expected=f"1 to {LONGEST_DEADLINE_MS}"
            )
        return Deadline(time.monotonic() + budget_ms / 1000, budget_ms)

    def check_room(self) -> None:
        """Check that a permit is free.

        Raises:
            Overloaded: none is.
        """
        if self.in_flight >= self._limit:
            self._metrics.shed.labels("limit").inc()
            raise Overloaded(
                "requests in flight",
                found=self.in_flight,
                expected=f"fewer than {self._limit}",
                retry_after_seconds=self._retry_after_seconds,
            )

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Hold one permit.

        Raises:
            Overloaded: none is free.
        """
        self.check_room()
        self.in_flight += 1
        self._metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.set(self.in_flight)
