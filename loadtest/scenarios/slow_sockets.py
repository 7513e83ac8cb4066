"""Many sockets whose other end is slow: some say nothing, some trickle a head, some trickle a body.

They live in a process of their own. One that is closed is opened again after a moment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from loadtest.errors import ServerFailed

_PACE_S, _TICKS = 1.0, 10
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
    """Open the sockets, say their number, and keep them slow; the entry point of the process.

    Plain calls and no event loop: what this costs is taken from whoever is measured on the same machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sockets: list[socket.socket | None] = []
    for number in range(count):
        sockets.append(_open(host, port, number))
        time.sleep(_APART_S)
    pipe.send(sum(map(_is_open, sockets)))
    parent, tick = os.getppid(), 0
    while os.getppid() == parent:
        for number in range(tick % _TICKS, count, _TICKS):
            sockets[number] = _trickle(sockets[number], number) or _open(host, port, number)
        if pipe.poll():
            pipe.recv()
            pipe.send(sum(map(_is_open, sockets)))
        tick += 1
        time.sleep(_PACE_S / _TICKS)


def _open(host: str, port: int, number: int) -> socket.socket | None:
    try:
        opened = socket.create_connection((host, port), timeout=5)
        opened.sendall(_TRICKLED[number % len(_TRICKLED)])
        opened.setblocking(False)
    except OSError:
        return None
    return opened


def _trickle(opened: socket.socket | None, number: int) -> socket.socket | None:
    """Send a byte, but for those who say nothing; return None where the other end has hung up."""
    if opened is None or not _is_open(opened):
        return None
    if _TRICKLED[number % len(_TRICKLED)]:
        with contextlib.suppress(OSError):
            opened.send(b"a")
    return opened


def _is_open(opened: socket.socket | None) -> bool:
    """Whether the other end waits on; to what is never whole it can but say that it has waited too long, or hang up."""
    if opened is None:
        return False
    try:
        opened.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        pass
    opened.close()
    return False
