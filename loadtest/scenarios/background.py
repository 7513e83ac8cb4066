"""A steady load from a process of its own while the scenario does its worst; ends when the scenario's block does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from loadtest.drive import Outcome, Plan, drive
from loadtest.errors import LoadtestError, ServerFailed
from loadtest.run import Load, plan_of
from loadtest.scenarios.scenario import Settings
from loadtest.traffic import build_requests, parse_target

_LONGEST_S = 1800.0
_START_S = 60.0


class SteadyLoad:
    """Sends rank requests at the settings' rate from the block's start to its end; open loop.

    Attributes:
        outcome: what became of each request, once the block has ended.
    """

    outcome: Outcome

    def __init__(self, settings: Settings, url: str, **load: Any) -> None:
        """Send nothing yet; `load` are fields of `loadtest.run.Load` other than the settings' own."""
        given: dict[str, Any] = {"rate_per_s": settings.rate_per_s, "seed": settings.seed, "arrivals": "poisson"}
        given |= {"duration_s": _LONGEST_S, "warmup_s": 0.0, "timeout_s": 10.0}
        target = parse_target(url)
        self._plan = plan_of(target, build_requests(target, settings.bodies), Load(**(given | load)))
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_send, args=(self._plan, theirs), daemon=True)

    def __enter__(self) -> Self:
        """Begin to send; returns when it has begun."""
        self._process.start()
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send no more and keep the outcome; or, when the block failed, just end."""
        try:
            if kind is None:
                with contextlib.suppress(ConnectionError):
                    self._ours.send("stop")
                self.outcome = self._receive()
        finally:
            self._process.kill()
            self._process.join()
            self._ours.close()

    def seconds(self, moment: float) -> float:
        """Return a moment of `time.monotonic()` as seconds from the start of the outcome."""
        return moment - self.outcome.start_ns / 1e9

    def _receive(self) -> Any:
        """Return the sender's next message.

        Raises:
            ServerFailed: it cannot send, or is gone.
        """
        give_up = time.monotonic() + _START_S
        received: object = "it ended"
        with contextlib.suppress(EOFError, ConnectionError):
            while not self._ours.poll(0.1):
                if not self._process.is_alive() or time.monotonic() > give_up:
                    break
            else:
                received = self._ours.recv()
        if isinstance(received, str):
            raise ServerFailed("steady load", found=received, expected="requests on their way")
        return received


def _send(plan: Plan, pipe: Connection) -> None:
    """Drive a plan until told to stop; the entry point of the process. Sends True, then the outcome; or a complaint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the scenario's to act on
    parent = os.getppid()
    pipe.send(True)
    try:
        pipe.send(drive(plan, stop=lambda: pipe.poll() or os.getppid() != parent))
    except LoadtestError as exc:
        pipe.send(str(exc))
