"""What a scenario starts: rankers by the command line of this repository, and nginx in front of them.

Knows a ranker by its command, its processes and its HTTP routes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType, TracebackType
from typing import Any, Self

import httpx

from loadtest import processes
from loadtest.errors import ServerFailed
from loadtest.processes import HOST, ROOT
from loadtest.scenarios.scenario import Settings

NGINX_CONFIG = ROOT / "deploy" / "nginx" / "nginx.conf"
PATIENT = {"DLEN_QUEUE_MS": "60000", "DLEN_MAX_IN_FLIGHT": "1000", "DLEN_DEADLINE_MS": "30000"}
"""Settings of a ranker that neither sheds nor gives up: for faults other than overload."""
_METRIC_PATIENCE_S = 10.0


class Ranker:
    """A ranker on ports of its own, started, killed and started again.

    Attributes:
        url, metrics_url: its addresses, the same after every start.
        log: what it writes.
    """

    def __init__(
        self,
        settings: Settings,
        name: str = "ranker",
        *,
        workers: int = 1,
        models: Path | None = None,
        fusion: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start nothing yet; `models` and `fusion` are the settings' unless given, `environment` is `DLEN_*`."""
        self.port, metrics_port = processes.free_ports(2)
        self.url, self.metrics_url = f"http://{HOST}:{self.port}", f"http://{HOST}:{metrics_port}"
        self.log = settings.folder / f"{name}.log"
        self._words = ranker_words(models or settings.models, fusion or settings.fusion, self.port, metrics_port)
        self._words += ["--workers", workers]
        self._environment = {"OMP_NUM_THREADS": "1", "DLEN_LOG_LEVEL": "warning", **environment}
        self._workers = workers
        self._process: Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    @property
    def process(self) -> Popen[bytes]:
        """Its process; with several workers, their supervisor's."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it and wait until all its workers serve.

        Raises:
            ServerFailed: they do not.
        """
        self._process = processes.start(self._words, self.log, self._environment)
        processes.wait_ready(self._process, f"{self.url}/readyz", self.log)
        if self._workers > 1:  # the one that answered may be the first
            for client in clients_by_worker(self.url, self._workers).values():
                client.close()

    def terminate(self) -> None:
        """Tell it to drain and stop."""
        self.process.send_signal(signal.SIGTERM)

    def end_gracefully(self) -> None:
        """Tell it to stop and wait until it is gone, its drain window over."""
        self.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """Kill it with all its workers."""
        processes.signal_all(self.process, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it, if it was started."""
        if self._process is not None:
            processes.end(self._process)

    def worker_pids(self) -> list[int]:
        """Return the processes that answer requests."""
        if self._workers == 1:
            return [self.process.pid]
        return processes.workers_below(self.process.pid)

    def all_pids(self) -> list[int]:
        """Return every process of the ranker, the one that was started first."""
        found = [self.process.pid]
        for pid in found:  # grows as it goes: children, then theirs
            found += processes.children(pid)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that carry the labels."""
        text = httpx.get(f"{self.metrics_url}/metrics", timeout=10).text
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def metric_reaches(self, value: float, name: str, **labels: str) -> bool:
        """Return whether a metric gets to a value within ten seconds."""
        return until(lambda: self.metric(name, **labels) >= value, _METRIC_PATIENCE_S) is not None


def ranker_words(models: Path, fusion: Path, port: int, metrics_port: int) -> list[object]:
    """Return the command of one ranker."""
    words: list[object] = [sys.executable, "-m", "cli", "serve", "--models", models.resolve()]
    return [*words, "--fusion", fusion.absolute(), "--port", port, "--metrics-port", metrics_port]


def clients_by_worker(url: str, workers: int) -> dict[int, httpx.Client]:
    """Return a kept-alive connection to each worker of a ranker, by its process.

    Raises:
        ServerFailed: some worker takes no connection within 60 s.
    """
    found: dict[int, httpx.Client] = {}
    give_up = time.monotonic() + processes.READY_S
    while len(found) < workers:
        client = httpx.Client(base_url=url, timeout=10)
        with contextlib.suppress(httpx.HTTPError):
            if found.setdefault(config_of(client)["pid"], client) is client:
                continue
        client.close()
        if time.monotonic() > give_up:
            for kept in found.values():
                kept.close()
            raise ServerFailed(url, found=f"{len(found)} workers", expected=f"{workers} that take connections")
    return found


def serving_pids(url: str, looks: int = 12) -> set[int]:
    """Return the workers that answered some requests, each on a connection of its own."""
    found = set()
    for _ in range(looks):
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=url, timeout=2) as client:
            found.add(int(config_of(client)["pid"]))
    return found


def config_of(client: httpx.Client) -> dict[str, Any]:
    """Return what a worker tells of its fusion config: `version`, `pid` and `config`."""
    answer = client.get("/v1/config")
    answer.raise_for_status()
    return dict(answer.json())


def until(reached: Callable[[], bool], patience_s: float, pause_s: float = 0.02) -> float | None:
    """Return the seconds until something is true, None when it does not get so in time."""
    start = time.monotonic()
    while not reached():
        if time.monotonic() - start > patience_s:
            return None
        time.sleep(pause_s)
    return time.monotonic() - start


def connections_of(pid: int, port: int) -> int:
    """Return how many connections to a port of loopback a process holds."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in table if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    held = 0
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held += str(handle.readlink()).removeprefix("socket:[").removesuffix("]") in inodes
    return held


def command_path(name: str) -> str | None:
    """Return the path of a command, None where the machine has none; looks where Debian keeps daemons too."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def nginx_config(folder: Path, port: int, replicas: tuple[int, int], **changes: str) -> Path:
    """Write the checked-in config with other addresses, its files below `folder`, and one worker; return its path.

    Args:
        folder: where everything goes.
        port: where nginx listens.
        replicas: the two rankers' ports.
        changes: other values of directives, as `client_body_timeout="1s"`.
    """
    text = (
        NGINX_CONFIG.read_text().replace("/tmp/", f"{folder}/").replace("worker_processes auto", "worker_processes 1")
    )
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"ranker-{number}:8080", f"{HOST}:{replica}")
    text = text.replace("listen 8080", f"listen {HOST}:{port}").replace("/dev/stdout", f"{folder}/access.log")
    lines = text.split("\n")
    for name, value in changes.items():
        lines = [f"{name} {value};" if line.strip().startswith(f"{name} ") else line for line in lines]
    file = folder / "nginx.conf"
    file.write_text("\n".join(lines if os.getuid() else ["user root;", *lines]))
    return file


@contextmanager
def nginx_in_front(folder: Path, replicas: tuple[int, int], **changes: str) -> Iterator[str]:
    """Run nginx in front of two ports until the block ends; gives its address. `access.log` in `folder` is its log.

    Raises:
        ServerFailed: it does not start.
    """
    (port,) = processes.free_ports(1)
    words = [command_path("nginx"), "-c", nginx_config(folder, port, replicas, **changes), "-e", "stderr"]
    url = f"http://{HOST}:{port}"
    with processes.running([*words, "-g", "daemon off;"], folder / "nginx.log", f"{url}/healthz"):
        yield url
