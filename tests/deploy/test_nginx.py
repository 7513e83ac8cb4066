"""The proxy of docker-compose.yml, really in front: slow clients, lost replicas, rolling restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy/nginx/nginx.conf"
pytestmark = pytest.mark.real_component


class Echo(BaseHTTPRequestHandler):
    """A replica that answers with the headers it got, or hangs up without an answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the body, count, answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1  # type: ignore[attr-defined]
        if self.server.broken:  # type: ignore[attr-defined]
            self.close_connection = True
            return
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def echo() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.asked, server.broken = 0, False  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def config_for(folder: Path, port: int, replicas: tuple[int, int]) -> Path:
    """The checked-in config with other addresses, its files below `folder`, and one worker."""
    text = CONFIG.read_text().replace("/tmp/", f"{folder}/").replace("worker_processes auto", "worker_processes 1")
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"ranker-{number}:8080", f"127.0.0.1:{replica}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/dev/stdout", f"{folder}/access.log")
    text = text.replace("client_body_timeout 5s", "client_body_timeout 1s")
    file = folder / "nginx.conf"
    file.write_text(text if os.getuid() else "user root;\n" + text)
    return file


@pytest.fixture
def in_front(tmp_path: Path, system_command: Callable[[str], str]) -> Iterator[Callable[[int, int], str]]:
    """A function that starts nginx in front of two ports and returns its address."""
    from deploy.rehearsal import free_port, running

    with ExitStack() as stack:

        def start(first: int, second: int) -> str:
            port = free_port()
            file = config_for(tmp_path, port, (first, second))
            words = [system_command("nginx"), "-c", file, "-e", "stderr", "-g", "daemon off;"]
            url = f"http://127.0.0.1:{port}"
            stack.enter_context(running(words, tmp_path / "nginx.log", f"{url}/healthz"))
            return url

        yield start


def test_nginx_finds_its_config_in_order(tmp_path, system_command):
    file = config_for(tmp_path, 8080, (8081, 8082))
    done = subprocess.run([system_command("nginx"), "-t", "-c", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "warn" not in done.stderr, done.stderr


def test_headers_pass_and_a_lost_replicas_request_is_asked_of_the_next(in_front, tmp_path):
    with echo() as first, echo() as second:
        url = in_front(first.server_port, second.server_port)
        given = {"traceparent": "00-aa-bb-01", "tracestate": "a=b", "x-request-deadline-ms": "70", "x-request-id": "r1"}
        got = httpx.post(f"{url}/v1/rank", json={}, headers=given).json()
        assert given.items() <= got.items()
        assert len(httpx.post(f"{url}/v1/rank", json={}).json()["x-request-id"]) == 32
        first.broken = True
        answers = [httpx.post(f"{url}/v1/rank", json={}).status_code for _ in range(8)]
        assert answers == [200] * 8 and first.asked + second.asked > 10
        second.broken = True
        answer = httpx.post(f"{url}/v1/rank", json={}, headers=given)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["request_id"] == "r1"
        assert answer.headers["content-type"] == "application/problem+json"
        assert [httpx.get(url + path).status_code for path in ("/admin/config/history", "/metrics")] == [404, 404]
    retried = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert any(line["status"] == 200 and "," in line["upstream"] for line in retried)


def test_a_slow_body_never_reaches_a_replica(in_front):
    with echo() as first, echo() as second:
        url = httpx.URL(in_front(first.server_port, second.server_port))
        slow = [socket.create_connection((url.host, url.port), timeout=10) for _ in range(50)]
        for one in slow:
            one.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.post(url.join("/v1/rank"), json={}).status_code == 200
        for one in slow:
            with one, suppress(ConnectionResetError):
                assert one.recv(100) == b""  # closed
        assert first.asked + second.asked == 1


class Replica:
    """A real ranker that is killed, or told to stop, and started again on the same port."""

    def __init__(self, folder: Path, models: Path) -> None:
        from deploy.rehearsal import free_port

        self.port, self._metrics_port, self._folder, self._models = free_port(), free_port(), folder, models
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        from deploy.rehearsal import ranker_words, running

        words = ranker_words(self._models, ROOT / "configs/fusion.yaml", self.port, self._metrics_port)
        ready = f"http://127.0.0.1:{self.port}/readyz"
        log = self._folder / f"ranker-{self.port}.log"
        self.process = self._stack.enter_context(
            running(words, log, ready, DLEN_DRAIN_SECONDS="3", OMP_NUM_THREADS="1", DLEN_MAX_IN_FLIGHT="32")
        )

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(20)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def replicas(tmp_path: Path, models: Path) -> Iterator[list[Replica]]:
    made = [Replica(tmp_path, models) for _ in range(2)]
    yield made
    for replica in made:
        replica.close()


def test_no_request_fails_when_a_replica_is_killed_and_when_both_are_restarted(in_front, replicas, bodies, tmp_path):
    url = in_front(replicas[0].port, replicas[1].port)
    statuses: list[int] = []
    refused: list[str] = []
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=20) as client:
            while not stop.wait(0.05):
                answer = client.post("/v1/rank", json=bodies[len(statuses) % len(bodies)])
                statuses.append(answer.status_code)
                if answer.status_code != 200:
                    refused.append(answer.text)

    def answered(more: int) -> None:
        target, give_up = len(statuses) + more, time.monotonic() + 30
        while len(statuses) < target and time.monotonic() < give_up:
            time.sleep(0.02)
        assert len(statuses) >= target

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        answered(20)
        replicas[0].end(signal.SIGKILL)
        answered(40)  # one replica carries all
        replicas[0].start()
        for replica in replicas:  # one after another, as a roll-out does
            answered(10)
            replica.end(signal.SIGTERM)
            replica.start()
        answered(20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not refused, refused + (tmp_path / "access.log").read_text().splitlines()[-20:]
