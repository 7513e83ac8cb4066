"""Where a worker stands between its start and its end; what /readyz and the server's main loop ask."""

from __future__ import annotations

import time


class Lifecycle:
    """Starting → ready → draining → stopped.

    Attributes:
        warmed: whether models and config are loaded.
        stop_at: moment on the monotonic clock when requests are no longer taken, None before SIGTERM.
    """

    def __init__(self, drain_seconds: float) -> None:
        """Start neither warmed nor draining."""
        self.warmed = False
        self.stop_at: float | None = None
        self._drain_seconds = drain_seconds

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.warmed and self.stop_at is None

    @property
    def stopped(self) -> bool:
        """Whether the drain window is over."""
        return self.stop_at is not None and time.monotonic() >= self.stop_at

    def drain(self) -> None:
        """Begin the drain window; asked again, end it."""
        again = self.stop_at is not None
        self.stop_at = time.monotonic() + (0.0 if again else self._drain_seconds)
