"""The proxy of docker-compose.yml, really in front: headers, lost replicas, slow bodies.

Whole services behind it are the matter of scenarios: tests/loadtest/test_scenarios_real.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.scenarios.stack import nginx_config, nginx_in_front

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


@pytest.fixture
def in_front(tmp_path: Path, system_command: Callable[[str], str]) -> Iterator[Callable[[int, int], str]]:
    """A function that starts nginx in front of two ports and returns its address."""
    system_command("nginx")
    with ExitStack() as stack:
        yield lambda first, second: stack.enter_context(
            nginx_in_front(tmp_path, (first, second), client_body_timeout="1s")
        )


def test_nginx_finds_its_config_in_order(tmp_path, system_command):
    file = nginx_config(tmp_path, 8080, (8081, 8082))
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
