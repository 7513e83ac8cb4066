"""Servers in processes of their own on one core: started, counted, and stopped whatever happens.

A server's processes are found by a mark in their environment, so that workers and daemons that leave their
parent are counted and stopped too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loadtest.errors import ServerFailed
from loadtest.peers.catalogue import HOST, PEERS_FOLDER, Server, Start
from loadtest.peers.kit import Kit
from loadtest.processes import free_ports

MARK = "LOADTEST_MARK"
START_S, STOP_S = 90.0, 8.0
_PORTS = 3
_ROOT = Path(__file__).parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")


class Running:
    """A started server.

    Attributes:
        port: where it listens, on loopback.
        process: the one that was started.
    """

    def __init__(self, server: Server, process: subprocess.Popen[str], port: int, mark: str, log: Path) -> None:
        """Watch a process."""
        self.server, self.process, self.port = server, process, port
        self._mark, self._log = f"{MARK}={mark}".encode(), log

    def wait_until_listening(self) -> None:
        """Return when the port takes connections.

        Raises:
            ServerFailed: it does not, or the process ended; with the last line that it wrote.
        """
        patience = time.monotonic() + START_S
        while time.monotonic() < patience:
            if self.process.poll() is not None:
                raise self.failed(f"exit code {self.process.returncode}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            time.sleep(0.05)
        raise self.failed(f"no listener after {START_S:g} s")

    def failed(self, what: str) -> ServerFailed:
        """Return the error that says what went wrong, with the last line the server wrote."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        said = f"; it says: {lines[-1][-300:]}" if lines else ""
        return ServerFailed(self.server.name, found=what + said, expected="a server that answers")

    def cpu_clock(self) -> Callable[[], float]:
        """Return a clock of the CPU seconds, user and system, of the processes it has now."""
        pids = self._pids()
        return lambda: sum(map(_cpu_s, pids))

    def stop(self) -> None:
        """End it and every process that it started."""
        for pid in self._pids():
            _send(pid, signal.SIGCONT)
        with contextlib.suppress(OSError):
            self.process.terminate()
        patience, told = time.monotonic() + STOP_S, False
        while time.monotonic() < patience and (self.process.poll() is None or self._pids()):
            if self.process.poll() is not None and not told:
                told = True
                for pid in self._pids():
                    _send(pid, signal.SIGTERM)
            time.sleep(0.05)
        while left := self._pids():
            for pid in left:
                _send(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def _pids(self) -> list[int]:
        return [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdecimal() and self._mark in _environment(path)
        ]


@contextlib.contextmanager
def running(server: Server, kit: Kit, core: int) -> Iterator[Running]:
    """Start a server on one core and stop it in the end.

    Raises:
        ServerFailed: it does not start.
    """
    ports = free_ports(_PORTS)
    start = Start(kit, ports, (PEERS_FOLDER / (server.peer or "")).absolute())
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="loadtest-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *server.command(start)],
                cwd=_ROOT if server.peer is None else folder,
                env=_environment_of(server, start, folder) | {MARK: mark},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if not server.wires else file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        started = Running(server, process, ports[0], mark, log)
        try:
            if server.wires:
                started.wait_until_listening()
            yield started
        finally:
            started.stop()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _environment_of(server: Server, start: Start, folder: str) -> dict[str, str]:
    """Return a server's environment: little of ours, and what its serve.py reads."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER") if name in os.environ}
    binaries = [str(start.environment / "bin")] if server.peer else []
    kept["PATH"] = os.pathsep.join([*binaries, os.environ.get("PATH", os.defpath)])
    kit, port = start.kit, start.ports[0]
    kept |= {"PEER_KIT": str(kit.folder), "PEER_MODEL": str(kit.folder / "plain.onnx"), "PEER_CODES": str(kit.codes)}
    kept |= {"PEER_PORT": str(port), "TMPDIR": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | dict(server.environment(start))


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)
