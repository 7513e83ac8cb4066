"""Sends a plan of requests at their times, whatever the server does, and keeps when each was answered.

Latency is counted from the intended send time (no coordinated omission): a request that waits for a free
connection, or for a frozen server, has waited. Knows nothing of percentiles.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import uvloop
from numpy.typing import NDArray

from loadtest.alarm import Alarm
from loadtest.connection import Connection
from loadtest.errors import Unreachable
from loadtest.traffic import Target

CONNECT_FAILED = -1
DISCONNECTED = -2
TIMED_OUT = -3
NOT_SENT = -4
FAILURES = {
    CONNECT_FAILED: "connect failed",
    DISCONNECTED: "disconnected",
    TIMED_OUT: "timed out",
    NOT_SENT: "not sent (queue full)",
}
"""Names of the outcomes that are no HTTP status."""
_START_AFTER_NS = 50_000_000
_BURST = 64
_SWEEP_S = 0.05


@dataclass(frozen=True)
class Plan:
    """What to send and when.

    Attributes:
        send_ns: rising times from the start, int64[requests].
        picks: which of `requests` goes out at each time.
        connections: most connections open at once; a request beyond waits for a free one.
        timeout_s: from the intended send time to the last byte of the answer.
        queue: most requests that wait for a connection; a request beyond is counted as not sent.
    """

    target: Target
    requests: Sequence[bytes]
    send_ns: NDArray[np.int64]
    picks: NDArray[np.int32]
    connections: int = 256
    timeout_s: float = 10.0
    queue: int = 100_000


@dataclass(frozen=True)
class Outcome:
    """What became of each request of a plan, in its order.

    Attributes:
        send_ns: intended send times from the start.
        latency_ns: from the intended send time to the end of the answer, or to the failure.
        lag_ns: from the intended send time to the moment this program took it up: its own fault.
        status: HTTP status, or one of FAILURES.
        connections: how many connections were opened.
        start_ns: the start, on the machine's monotonic clock.
    """

    send_ns: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    lag_ns: NDArray[np.int64]
    status: NDArray[np.int16]
    connections: int
    start_ns: int = 0


def drive(plan: Plan, stop: Callable[[], bool] | None = None) -> Outcome:
    """Run the plan to its end and return what became of it.

    Args:
        plan: what to send and when.
        stop: asked some twenty times a second; once true, nothing more is sent and the rest of the plan is left out.

    Raises:
        Unreachable: no connection to the target before the start.
    """
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would stop the sender for milliseconds
    try:
        return uvloop.run(_drive(plan, stop))
    finally:
        gc.enable()
        gc.unfreeze()


async def _drive(plan: Plan, stop: Callable[[], bool] | None) -> Outcome:
    target = plan.target
    try:
        _, writer = await asyncio.open_connection(target.host, target.port)
    except OSError as exc:
        raise Unreachable(target.url, found=str(exc), expected="a listening server") from exc
    writer.close()
    driver = _Driver(plan, asyncio.get_running_loop(), stop)
    try:
        await driver.run()
    finally:
        driver.close()
    size = driver.size
    return Outcome(
        send_ns=plan.send_ns[:size],
        latency_ns=np.frombuffer(driver.latency_ns, dtype=np.int64)[:size],
        lag_ns=np.frombuffer(driver.lag_ns, dtype=np.int64)[:size],
        status=np.frombuffer(driver.status, dtype=np.int16)[:size],
        connections=driver.opened,
        start_ns=driver.start_ns,
    )


class _Driver:
    """The state of one run: requests due, waiting and on their way; connections idle and open."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop, stop: Callable[[], bool] | None) -> None:
        self.size = size = len(plan.send_ns)
        self._stop = stop
        self.latency_ns = array("q", bytes(8 * size))
        self.lag_ns = array("q", bytes(8 * size))
        self.status = array("h", bytes(2 * size))
        self.opened = 0
        self._plan = plan
        self._loop = loop
        self._tls = ssl.create_default_context() if plan.target.tls else None
        self._next = 0
        self._left = size
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[int] = deque()
        self._done = asyncio.Event()
        self._alarm = Alarm(loop, self._send_due)
        self._sweeper: asyncio.TimerHandle | None = None
        self._timeout_ns = int(plan.timeout_s * 1e9)
        self.start_ns = time.monotonic_ns() + _START_AFTER_NS
        self._due_ns = array("q", (plan.send_ns + self.start_ns).astype(np.int64).tobytes())
        self._picks = array("i", plan.picks.astype(np.int32).tobytes())

    async def run(self) -> None:
        if self._left:
            self._alarm.set(self._due_ns[0])
            self._sweep()
            await self._done.wait()

    def close(self) -> None:
        self._alarm.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._opening:
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()

    def answered(self, connection: Connection, index: int, status: int, at_ns: int) -> None:
        self._record(index, status, at_ns)
        if connection.usable:
            self._use(connection)

    def lost(self, connection: Connection, index: int) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if index >= 0:
            self._record(index, DISCONNECTED, time.monotonic_ns())
        if self._waiting and not self._done.is_set():
            self._connect()

    def _send_due(self) -> None:
        """Take up what is due, at most a burst of it, so that answers are read in between."""
        due_ns, size = self._due_ns, self.size
        for _ in range(_BURST):
            index = self._next
            if index == size:
                return
            lag_ns = time.monotonic_ns() - due_ns[index]
            if lag_ns < 0:
                break
            self.lag_ns[index] = lag_ns
            self._next = index + 1
            self._take_up(index)
        if self._next < size:
            self._alarm.set(due_ns[self._next])

    def _take_up(self, index: int) -> None:
        if self._idle:
            self._idle.pop().send(index, self._plan.requests[self._picks[index]])
            return
        if len(self._waiting) >= self._plan.queue:
            self._record(index, NOT_SENT, time.monotonic_ns())
            return
        self._waiting.append(index)
        self._connect()

    def _connect(self) -> None:
        """Open a connection for a waiting request, unless enough are open or being opened."""
        if len(self._open) + len(self._opening) >= self._plan.connections:
            return
        if len(self._opening) >= len(self._waiting):
            return
        task = self._loop.create_task(self._open_one())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_one(self) -> None:
        target = self._plan.target
        connection: Connection | None
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self), target.host, target.port, ssl=self._tls
                )
        except (OSError, TimeoutError):
            connection = None
        if connection is None or not connection.usable:
            if self._waiting:
                self._record(self._waiting.popleft(), CONNECT_FAILED, time.monotonic_ns())
            self._loop.call_later(0.01, self._retry)
            return
        self.opened += 1
        self._open.add(connection)
        self._use(connection)

    def _retry(self) -> None:
        if self._waiting and not self._done.is_set():
            self._connect()

    def _use(self, connection: Connection) -> None:
        """Give the connection the request that has waited longest, or let it be idle."""
        if self._waiting and connection.usable:
            index = self._waiting.popleft()
            connection.send(index, self._plan.requests[self._picks[index]])
        elif connection.usable:
            self._idle.append(connection)

    def _sweep(self) -> None:
        """Give up what has taken too long, on its way or waiting."""
        if self._stop is not None and self._stop():
            self._end_early()
        now_ns = time.monotonic_ns()
        expired_ns = now_ns - self._timeout_ns
        while self._waiting and self._due_ns[self._waiting[0]] <= expired_ns:
            self._record(self._waiting.popleft(), TIMED_OUT, now_ns)
        for connection in tuple(self._open):
            index = connection.index
            if index >= 0 and self._due_ns[index] <= expired_ns:
                connection.index = -1
                self._record(index, TIMED_OUT, now_ns)
                connection.abort()
        if not self._done.is_set():
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _end_early(self) -> None:
        self._stop = None
        self._left -= self.size - self._next
        self.size = self._next
        if not self._left:
            self._done.set()

    def _record(self, index: int, status: int, at_ns: int) -> None:
        self.latency_ns[index] = at_ns - self._due_ns[index]
        self.status[index] = status
        self._left -= 1
        if not self._left:
            self._done.set()
