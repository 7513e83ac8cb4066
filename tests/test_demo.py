"""`dlen demo` from nothing to an answer, its reuse, and Ctrl-C as a person presses it."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo(folder: Path, *more: str) -> list[str]:
    ports = ["--port", str(free_port()), "--metrics-port", str(free_port())]
    size = ["--folder", str(folder), "--impressions", "6000", "--epochs", "1"]
    return [sys.executable, "-m", "cli", "demo", *size, *ports, *more]


def read_until(terminal: int, text: str, within_s: float) -> str:
    seen, deadline = "", time.monotonic() + within_s
    while text not in seen and time.monotonic() < deadline:
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            break
    return seen


def test_demo_answers_once_then_reuses_everything_and_stops_at_ctrl_c(tmp_path):
    first = subprocess.run(demo(tmp_path, "--once"), capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "20 candidates" in first.stdout
    assert "recovery of P(UP)" in first.stdout
    terminal, inside = pty.openpty()
    second = subprocess.Popen(
        demo(tmp_path), stdin=inside, stdout=inside, stderr=inside, cwd=ROOT, start_new_session=True
    )
    os.close(inside)
    try:
        seen = read_until(terminal, "Ctrl-C stops", 60)
        assert "Ctrl-C stops" in seen
        assert seen.count("is there, reused") == 6
        assert "$ dlen train" not in seen
        os.killpg(second.pid, signal.SIGINT)  # what a terminal does: every process of the foreground gets it
        rest = read_until(terminal, "\0", 30)
        assert second.wait(30) == 0, rest
        assert "Traceback" not in rest
    finally:
        if second.poll() is None:
            os.killpg(second.pid, signal.SIGKILL)
            second.wait()
        os.close(terminal)


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
