"""Many sockets whose other end is slow: some say nothing, some trickle a head, some trickle a body.

They live in a process of their own. One that is closed is opened again after a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from loadtest.errors import ServerFailed

_PACE_S = 1.0
_START_S = 30.0
_APART_S = 0.006
"""Between two openings, so that a proxy that closes them after a time does not close all at once."""
_HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: slow\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
_TRICKLED = (b"", _HEAD[:30], _HEAD)
"""What a socket of each kind says at once; the last two go on with a byte a second."""


@contextmanager
def slow_sockets(host: str, port: int, count: int) -> Iterator[Connection]:
    """Hold so many slow sockets open until the block ends; gives a pipe that answers a message with their number.

    Raises:
        ServerFailed: they cannot all be opened within 30 s.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(host, port, count, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(_START_S) or ours.recv() < count:
            raise ServerFailed(f"{host}:{port}", found="no more connections", expected=f"{count} slow ones")
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _hold(host: str, port: int, count: int, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Holder(host, port, pipe).hold(count))


class _Holder:
    def __init__(self, host: str, port: int, pipe: Connection) -> None:
        self._host, self._port, self._pipe = host, port, pipe
        self._open = 0

    async def hold(self, count: int) -> None:
        tasks = [asyncio.create_task(self._one(number)) for number in range(count)]
        while self._open < count:
            await asyncio.sleep(0.05)
        self._pipe.send(self._open)
        parent = os.getppid()
        while os.getppid() == parent:
            if self._pipe.poll():
                self._pipe.recv()
                self._pipe.send(self._open)
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()

    async def _one(self, number: int) -> None:
        await asyncio.sleep(number * _APART_S)
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                self._open += 1
                try:
                    await self._trickle(reader, writer, _TRICKLED[number % len(_TRICKLED)])
                finally:
                    self._open -= 1
                    writer.close()
            await asyncio.sleep(0.05)

    @staticmethod
    async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes) -> None:
        writer.write(said)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PACE_S):
                    if not await reader.read(1000):
                        return
            if said:
                writer.write(b"a")
