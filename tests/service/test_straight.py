"""Rank requests on their short way: answered as by the route, whatever the caller does with the connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from service.metrics import Metrics
from service.settings import Settings
from service.straight import straight
from service.worker import Worker


@contextlib.contextmanager
def connected(running: Any) -> Iterator[socket.socket]:
    parts = urlsplit(running.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as opened:
        yield opened


def request(body: bytes, *headers: str, target: str = "/v1/rank", version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "host: h", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answers:
    """Reads answers from a socket, one after the other."""

    def __init__(self, opened: socket.socket) -> None:
        self._file = opened.makefile("rb")

    def read(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self._file.read(int(headers["content-length"]))

    @property
    def ended(self) -> bool:
        return self._file.read(1) == b""


def body_of(make_body: Any, count: int = 5, **more: object) -> bytes:
    return json.dumps({**make_body(count), **more}).encode()


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({}, ["x-request-id: a"]),
        ({}, ["x-request-id: a", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
        ({"top_k": -1}, ["x-request-id: a"]),
        ({"candidates": []}, ["x-request-id: a", "accept: application/vnd.apache.arrow.stream"]),
        ({}, ["x-request-id: a", "content-type: text/csv"]),
        ({}, ["x-request-id: a", "x-request-deadline-ms: soon"]),
        ({}, ["x-request-id: a", "x-force-variant: nothing"]),
        ({"force_variant": {"a": "b"}}, ["x-request-id: a"]),
        ({"model": "x" * 30_000}, ["x-request-id: a"]),
    ],
)
def test_the_short_way_answers_as_the_route_does(running, make_body, change, headers):
    body = body_of(make_body, **change)
    with connected(running) as opened:
        answers = Answers(opened)
        found = []
        for target in ("/v1/rank", "/v1/rank?"):  # a query, even an empty one, takes the route
            opened.sendall(request(body, *headers, target=target))
            status, named, content = answers.read()
            named.pop("date")
            found.append((status, named, content))
    assert found[0] == found[1]


def test_both_ways_count_the_same(running, make_body):
    names = ("dlen_http_requests_total", "dlen_http_request_seconds_count", "dlen_rank_refused_total")
    for target in ("/v1/rank", "/v1/rank?"):
        before = [running.metric(name) for name in names]
        with connected(running) as opened:
            opened.sendall(request(body_of(make_body), target=target))
            assert Answers(opened).read()[0] == 200
            opened.sendall(request(body_of(make_body, top_k=-1), target=target))
            assert Answers(opened).read()[0] == 422
        assert [running.metric(name) - value for name, value in zip(names, before, strict=True)] == [2, 2, 1]


def test_pipelined_requests_are_answered_in_their_order(running, make_body):
    sizes = [1, 7, 3, 50, 2]
    with connected(running) as opened:
        opened.sendall(b"".join(request(body_of(make_body, size)) for size in sizes))
        answers = Answers(opened)
        assert [len(json.loads(answers.read()[2])["items"]) for _ in sizes] == sizes


def test_a_body_may_come_in_pieces_or_chunks(running, make_body):
    whole = body_of(make_body)
    chunked = b"POST /v1/rank HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"".join(
        b"%x\r\n%b\r\n" % (len(whole[at : at + 100]), whole[at : at + 100]) for at in range(0, len(whole), 100)
    )
    with connected(running) as opened:
        answers = Answers(opened)
        for sent in (request(whole), chunked + b"0\r\n\r\n"):
            for at in range(0, len(sent), 97):
                opened.sendall(sent[at : at + 97])
            assert answers.read()[0] == 200


def test_a_body_that_grows_beyond_the_limit_is_refused_before_its_end_and_thrown_away(running, make_body):
    with connected(running) as opened:
        opened.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        opened.sendall(b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
        answers = Answers(opened)
        assert answers.read()[0] == 413
        opened.sendall(b"5000\r\n" + b"x" * 0x5000 + b"\r\n0\r\n\r\n" + request(body_of(make_body)))
        assert answers.read()[0] == 200


@pytest.mark.parametrize("sent", [{"version": "1.0"}, {"headers": ["connection: close"]}])
def test_a_connection_ends_where_the_caller_wants_it(running, make_body, sent):
    with connected(running) as opened:
        opened.sendall(request(body_of(make_body), *sent.get("headers", ()), version=sent.get("version", "1.1")))
        answers = Answers(opened)
        status, headers, _ = answers.read()
        assert (status, headers["connection"]) == (200, "close")
        assert answers.ended


def test_a_caller_who_expects_to_be_told_to_go_on_is_told(running, make_body):
    body = body_of(make_body)
    with connected(running) as opened:
        opened.sendall(request(b"", "expect: 100-continue").replace(b"length: 0", b"length: %d" % len(body)))
        assert opened.recv(100).startswith(b"HTTP/1.1 100")
        opened.sendall(body)
        assert Answers(opened).read()[0] == 200


def test_a_caller_who_leaves_before_the_body_is_whole_is_counted_as_such(running, make_body):
    before = running.metric("dlen_http_requests_total", status="499")
    with connected(running) as opened:
        opened.sendall(request(body_of(make_body))[:-10])
        time.sleep(0.05)
    give_up = time.monotonic() + 10
    while running.metric("dlen_http_requests_total", status="499") == before and time.monotonic() < give_up:
        time.sleep(0.02)
    assert running.metric("dlen_http_requests_total", status="499") == before + 1


def test_a_caller_who_asks_on_and_on_without_reading_is_cut_off(running, make_body):
    with connected(running) as opened, pytest.raises(OSError):
        for _ in range(20_000):
            opened.sendall(request(body_of(make_body)))
    assert running.rank(make_body(5)).status_code == 200


class Transport(asyncio.Transport):
    """Keeps what is written."""

    written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...


async def nobody(scope: object, receive: object, send: object) -> None:
    raise AssertionError("the route is not taken")


class Broken:
    """A ranker with a bug."""

    def rank(self, *_: object) -> None:
        raise ZeroDivisionError("secret")


def test_a_bug_is_logged_and_told_without_what_it_says(make_body, caplog):
    worker = Worker(Settings.model_validate({"models": "m", "fusion": "f"}), Metrics(CollectorRegistry()))
    worker.ranker = Broken()  # type: ignore[assignment]
    worker.serving = SimpleNamespace(choose=lambda name: None, snapshots={}, typed_json=None)  # type: ignore[assignment]

    async def run() -> bytes:
        config = uvicorn.Config(nobody, http=straight(worker), log_config=None, lifespan="off", interface="asgi3")
        config.load()
        protocol: Any = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
        transport = Transport()
        protocol.connection_made(transport)
        protocol.data_received(request(body_of(make_body), "x-request-id: q1"))
        while not transport.written:
            await asyncio.sleep(0.01)
        protocol.connection_lost(None)
        return transport.written

    with caplog.at_level(logging.ERROR, "service.app"):
        written = asyncio.run(run())
    worker.compute.close()
    assert written.startswith(b"HTTP/1.1 500") and b'"request_id":"r-1"' in written and b"secret" not in written
    assert "request r-1: a bug" in caplog.text and "ZeroDivisionError: secret" in caplog.text
