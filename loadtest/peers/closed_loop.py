"""A few connections, each with one request on its way at all times: how much a server answers at most.

Closed loop: a slow server is asked less, so its latencies say nothing of a given rate (`dlen loadtest run` does).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvloop

from loadtest.connection import Connection
from loadtest.errors import Unreachable


@dataclass(frozen=True)
class Answered:
    """What a closed loop gave after its warm-up, from one answer to a later one.

    Attributes:
        requests: answered 2xx.
        failed: answered otherwise, or not at all.
        seconds: taken by them.
        cpu_s: CPU seconds of the server within them.
    """

    requests: int
    failed: int
    seconds: float
    cpu_s: float


def drive_closed(
    host: str,
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    warmup_s: float,
    duration_s: float,
    cpu_s: Callable[[], float],
    timeout_s: float = 60.0,
) -> Answered:
    """Return what a server at host:port answers to complete requests, sent in turns.

    Counting begins with the first answer after the warm-up and ends with the first one after the duration.

    Raises:
        Unreachable: a connection cannot be opened, or none is left, or answers stay away.
    """
    loop = _Loop(requests, cpu_s, warmup_s, duration_s)
    try:
        return uvloop.run(loop.run(host, port, connections, timeout_s))
    except (OSError, TimeoutError) as exc:
        raise Unreachable(f"{host}:{port}", found=str(exc) or "no answer", expected="a server that answers") from exc


class _Loop:
    def __init__(
        self, requests: Sequence[bytes], cpu_s: Callable[[], float], warmup_s: float, duration_s: float
    ) -> None:
        self._requests = requests
        self._cpu_s = cpu_s
        self._warmup_s, self._duration_s = warmup_s, duration_s
        self._sent = self._ok = self._failed = 0
        self._open: set[Connection] = set()
        self._start_s = 0.0
        self._begun: tuple[float, float] | None = None
        self._answered: asyncio.Future[Answered] | None = None

    async def run(self, host: str, port: int, connections: int, timeout_s: float) -> Answered:
        loop = asyncio.get_running_loop()
        self._answered = loop.create_future()
        try:
            for _ in range(connections):
                _, connection = await loop.create_connection(lambda: Connection(self), host, port)
                self._open.add(connection)
            self._start_s = time.perf_counter()
            for connection in tuple(self._open):
                self._send(connection)
            async with asyncio.timeout(timeout_s):
                return await self._answered
        finally:
            for connection in tuple(self._open):
                connection.abort()

    def _send(self, connection: Connection) -> None:
        connection.send(0, self._requests[self._sent % len(self._requests)])
        self._sent += 1

    def answered(self, connection: Connection, index: int, status: int, at_ns: int) -> None:
        """Count an answer and ask again (Connection's owner)."""
        assert self._answered is not None
        if self._answered.done():
            return
        now_s = time.perf_counter()
        if self._begun is None:
            if now_s >= self._start_s + self._warmup_s:
                self._begun = time.perf_counter(), self._cpu_s()
                self._failed = 0
        else:
            good = 200 <= status < 300
            self._ok += good
            self._failed += not good
            if now_s >= self._begun[0] + self._duration_s:
                spent_s = self._cpu_s() - self._begun[1]
                self._answered.set_result(Answered(self._ok, self._failed, now_s - self._begun[0], spent_s))
                return
        if connection.usable:
            self._send(connection)

    def lost(self, connection: Connection, index: int) -> None:
        """Count what a closed connection lost (Connection's owner)."""
        assert self._answered is not None
        self._open.discard(connection)
        self._failed += 1
        if not self._open and not self._answered.done():
            self._answered.set_exception(ConnectionResetError("every connection was closed"))
