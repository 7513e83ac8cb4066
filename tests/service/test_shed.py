"""The door: who is refused before a task is made, with which bytes, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from service.admission import Admission
from service.metrics import Metrics
from service.settings import Settings
from service.shed import Door, guarded


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Stand:
    """A protocol on a transport of lists, and an application that answers with what it was sent."""

    def __init__(self, limit: int) -> None:
        settings = Settings.model_validate({"models": "m", "fusion": "f", "max_in_flight": limit})
        self.metrics = Metrics(CollectorRegistry())
        self.admission = Admission(settings, self.metrics)
        self.asked: list[str] = []
        refused = self.metrics.tallies.count(self.metrics.requests.labels("/v1/rank", "POST", "503"))
        door = Door(self.admission, "/v1/rank", refused)
        config = uvicorn.Config(self.app, http=guarded(door), log_config=None, lifespan="off", interface="asgi3")
        config.load()
        self.config = config

    def connect(self) -> tuple[Any, Transport]:
        protocol: Any = self.config.http_protocol_class(config=self.config, server_state=ServerState(), app_state={})
        transport = Transport()
        protocol.connection_made(transport)
        return protocol, transport

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(f"{scope['method']} {scope['path']}")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/v1/rank" and self.admission.has_room:
            self.admission.take()
        elif scope["path"] == "/v1/rank":
            body = b"no room for " + body
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def counted(self) -> tuple[float, float]:
        """Shed requests, and 503 answers, as the metrics tell them."""
        value = self.metrics.registry.get_sample_value
        labels = {"route": "/v1/rank", "method": "POST", "status": "503"}
        return (
            value("dlen_rank_shed_total", {"reason": "limit"}) or 0,
            value("dlen_http_requests_total", labels) or 0,
        )


@pytest.fixture
def stand() -> Callable[[Callable[[Stand], Any]], None]:
    """Run a test's steps on an event loop."""

    def run(steps: Callable[[Stand], Any], limit: int = 1) -> None:
        asyncio.run(steps(Stand(limit)))

    return run


def request(body: bytes = b"{}", head: str = "POST /v1/rank HTTP/1.1", *headers: str) -> bytes:
    lines = [head, "host: h", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_beyond_the_limit_the_answer_is_503_and_the_connection_goes_on(stand):
    async def steps(given: Stand) -> None:
        given.admission.take()
        protocol, transport = given.connect()
        protocol.data_received(request(b"x" * 1000))
        head, _, body = transport.written.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 503 Service Unavailable"
        assert {"retry-after: 1", "content-type: application/problem+json", f"content-length: {len(body)}"} <= {*lines}
        assert not any(line.startswith("connection") for line in lines)
        document = json.loads(body)
        assert (document["type"], document["status"]) == ("urn:dlen:problem:overloaded", 503)
        assert document["expected"] == "fewer than 1"
        assert not given.asked and not transport.closed
        given.admission.give_back(None)
        transport.written = b""
        protocol.data_received(request(b"hello"))
        await asyncio.sleep(0.01)
        assert given.asked == ["POST /v1/rank"]
        assert transport.written.startswith(b"HTTP/1.1 200") and transport.written.endswith(b"hello")
        assert given.counted() == (1, 1)
        protocol.connection_lost(None)

    stand(steps)


def test_a_refused_body_is_thrown_away_in_whatever_pieces_it_comes(stand):
    async def steps(given: Stand) -> None:
        given.admission.take()
        protocol, transport = given.connect()
        whole = request(b"POST /v1/rank HTTP/1.1\r\n\r\n" * 50)
        for start in range(0, len(whole), 7):
            protocol.data_received(whole[start : start + 7])
        assert transport.written.count(b"HTTP/1.1 503") == 1
        protocol.data_received(request(b"", "GET /readyz HTTP/1.1"))
        await asyncio.sleep(0.01)
        assert given.asked == ["GET /readyz"]
        assert transport.written.count(b"HTTP/1.1 ") == 2 and given.counted() == (1, 1)
        protocol.connection_lost(None)

    stand(steps)


@pytest.mark.parametrize("how", [("POST /v1/rank HTTP/1.1", "connection: close"), ("POST /v1/rank HTTP/1.0",)])
def test_who_does_not_keep_the_connection_has_it_closed_once_the_body_is_read(stand, how):
    async def steps(given: Stand) -> None:
        given.admission.take()
        protocol, transport = given.connect()
        whole = request(b"0123456789", *how)
        protocol.data_received(whole[:-5])
        assert b"\r\nconnection: close\r\n" in transport.written and not transport.closed
        protocol.data_received(whole[-5:])
        assert transport.closed
        protocol.connection_lost(None)

    stand(steps)


@pytest.mark.parametrize("head", ["GET /v1/rank HTTP/1.1", "POST /v1/ranks HTTP/1.1", "POST /v2/v1/rank HTTP/1.1"])
def test_others_are_let_through(stand, head):
    async def steps(given: Stand) -> None:
        given.admission.take()
        protocol, transport = given.connect()
        protocol.data_received(request(b"", head))
        await asyncio.sleep(0.01)
        assert given.asked == [head.rpartition(" ")[0]] and given.counted() == (0, 0)
        protocol.connection_lost(None)

    stand(steps)


def test_who_cannot_wait_is_refused_while_others_are_let_in(stand):
    async def steps(given: Stand) -> None:
        given.admission.take()
        given.admission.give_back(0.01)
        given.admission.limit = 9
        for _ in range(3):
            given.admission.take()
        written = []
        for header in ("x-request-deadline-ms: 40", "X-Request-Deadline-Ms: 400"):
            protocol, transport = given.connect()
            protocol.data_received(request(b"{}", "POST /v1/rank HTTP/1.1", header))
            await asyncio.sleep(0.01)
            written.append(transport.written[:12])
            protocol.connection_lost(None)
        assert written == [b"HTTP/1.1 503", b"HTTP/1.1 200"] and given.counted() == (1, 1)

    stand(steps)


def test_a_body_that_stays_away_holds_no_permit(stand):
    async def steps(given: Stand) -> None:
        slow, _ = given.connect()
        slow.data_received(request(b"0123456789")[:-5])
        await asyncio.sleep(0.01)
        protocol, transport = given.connect()
        protocol.data_received(request(b"hello"))
        await asyncio.sleep(0.01)
        assert transport.written.startswith(b"HTTP/1.1 200") and given.counted() == (0, 0)
        for one in (slow, protocol):
            one.connection_lost(None)
        await asyncio.sleep(0.01)

    stand(steps)


def test_a_pipelined_request_is_answered_in_its_turn(stand):
    async def steps(given: Stand) -> None:
        protocol, transport = given.connect()
        protocol.data_received(request(b"one") + request(b"two"))
        await asyncio.sleep(0.01)
        assert given.asked == ["POST /v1/rank"] * 2 and given.counted() == (0, 0)
        assert transport.written.index(b"one") < transport.written.index(b"no room for two")
        protocol.connection_lost(None)

    stand(steps)
