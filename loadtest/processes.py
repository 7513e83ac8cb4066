"""Programs in processes of their own on loopback: started, waited for, and ended with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtest.errors import ServerFailed

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[1]
READY_S, STOP_S = 60.0, 20.0


def free_ports(count: int) -> tuple[int, ...]:
    """Return different ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind((HOST, 0))
        return tuple(one.getsockname()[1] for one in opened)


def start(words: Sequence[object], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, so that a Ctrl-C here is not one there; output goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            cwd=ROOT,
            start_new_session=True,
        )


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until an address answers 200.

    Raises:
        ServerFailed: it does not within 60 s, or the process ends; with the last line that it wrote.
    """
    give_up = time.monotonic() + READY_S
    with httpx.Client(timeout=2) as client:
        while time.monotonic() < give_up and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(0.05)
    lines = log.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    ended = "no answer 200" if process.poll() is None else f"exit code {process.returncode}"
    raise ServerFailed(url, found=f"{ended}; it says: {said[-300:]}", expected="a server that gets ready")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that `start` started: two SIGTERM (no drain window), then SIGKILL for it and all its children."""
    signal_all(process, signal.SIGCONT)
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    signal_all(process, signal.SIGKILL)
    process.wait()


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process that `start` started and to its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def running(words: Sequence[object], log: Path, ready: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, from when the address `ready` answers 200.

    Raises:
        ServerFailed: it does not get ready.
    """
    process = start(words, log, environment)
    try:
        wait_ready(process, ready, log)
        yield process
    finally:
        end(process)


def children(pid: int) -> list[int]:
    """Return the processes that a process started, as Linux tells."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_below(supervisor: int) -> list[int]:
    """Return a ranker's workers: children of the process that forks them, not multiprocessing's resource tracker."""
    forking = [pid for pid in children(supervisor) if b"forkserver" in _command_line(pid)]
    return [worker for pid in forking for worker in children(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
