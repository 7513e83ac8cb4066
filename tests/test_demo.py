"""`dlen demo` from nothing to an answer, its reuse, and its end by Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo(folder: Path, *more: str) -> list[str]:
    ports = ["--port", str(free_port()), "--metrics-port", str(free_port())]
    size = ["--folder", str(folder), "--impressions", "6000", "--epochs", "1"]
    return [sys.executable, "-m", "cli", "demo", *size, *ports, *more]


class Terminal(NamedTuple):
    """A demo as a person sees it."""

    demo: subprocess.Popen[bytes]
    screen: int

    def read_until(self, text: str, within_s: float) -> str:
        seen, deadline = "", time.monotonic() + within_s
        while text not in seen and time.monotonic() < deadline:
            try:
                seen += os.read(self.screen, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                break
        return seen

    def check_end(self) -> None:
        """Wait for the end of the demo and of every process below it."""
        rest = self.read_until("\0", 30)
        assert self.demo.wait(30) == 0, rest
        assert "Traceback" not in rest
        deadline = time.monotonic() + 10
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.demo.pid, 0)
                time.sleep(0.05)


@contextmanager
def in_terminal(folder: Path) -> Iterator[tuple[str, Terminal]]:
    """Run a demo until it has answered; yield what it has shown, and its terminal."""
    screen, inside = pty.openpty()
    started = subprocess.Popen(
        demo(folder), stdin=inside, stdout=inside, stderr=inside, cwd=ROOT, start_new_session=True
    )
    os.close(inside)
    terminal = Terminal(started, screen)
    try:
        shown = terminal.read_until("Ctrl-C stops", 60)
        assert "Ctrl-C stops" in shown
        yield shown, terminal
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        os.close(screen)


def test_demo_answers_once_then_reuses_everything_and_stops_at_ctrl_c_or_sigterm(tmp_path):
    first = subprocess.run(demo(tmp_path, "--once"), capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "20 candidates" in first.stdout
    assert "recovery of P(UP)" in first.stdout
    with in_terminal(tmp_path) as (shown, terminal):
        assert shown.count("is there, reused") == 6
        assert "$ dlen train" not in shown
        os.killpg(terminal.demo.pid, signal.SIGINT)  # what a terminal does: every process of the foreground gets it
        terminal.check_end()
    with in_terminal(tmp_path) as (_, terminal):
        terminal.demo.terminate()  # what a supervisor does: the demo alone gets it
        terminal.check_end()


def test_a_busy_port_is_named_before_anything_is_made(tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        command = [sys.executable, "-m", "cli", "demo", "--folder", str(tmp_path / "new"), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port 127.0.0.1:{port}" in done.stderr
    assert not (tmp_path / "new").exists()
