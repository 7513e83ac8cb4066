"""Rank requests go from the socket straight to their job: past tasks, ASGI, middleware, routing and injection.

They are most of what a ranker is asked, and those layers cost more than a small request's model. Heads, bodies and
connections stay uvicorn's, and so does every request that is not plain: pipelined ones, `Expect`, an upgrade, a caller
who does not read. Those, and all where there are traces (FastAPI's own), take the route, which does the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.caller import CallerKey
from service.errors import PROBLEM_MEDIA_TYPE, BodyTooLarge, ServiceError, problem
from service.job import Job, Outcome
from service.observe import note_answer, note_problem, request_id
from service.openapi import RANK_PATH
from service.record import Record
from service.routes import CLIENT_CLOSED_REQUEST, check_size, check_told_size, order_of
from service.worker import Worker

_LOG = logging.getLogger("service.app")
_URL = RANK_PATH.encode()
MOST_PIPELINED = 64
"""Requests that one connection may have waiting; uvicorn itself would take any number."""


def straight(worker: Worker) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with the short way, or as it is where requests are traced."""
    if worker.tracing is not None:
        return HttpToolsProtocol
    guard = None if worker.settings.keys_file is None else CallerKey(worker.caller_keys)

    class Straight(HttpToolsProtocol):
        """Gives rank requests to an `Answering`, which stands in the place of uvicorn's cycle."""

        def on_headers_complete(self) -> None:
            """Take a rank request, or leave a request to uvicorn."""
            before, parser = self.cycle, self.parser
            if (
                self.url != _URL
                or parser.get_method() != b"POST"
                or (before is not None and not before.response_complete)
                or self.expect_100_continue
                or self.flow.write_paused
                or parser.should_upgrade()
            ):
                super().on_headers_complete()
                if len(self.pipeline) > MOST_PIPELINED:
                    self.transport.close()
                return
            keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
            cycle: Any = Answering(worker, self, keep_alive)
            self.cycle = cycle
            cycle.begin(self.headers, guard)

        def on_body(self, body: bytes) -> None:
            """Take a part of a body."""
            cycle: object = self.cycle
            if isinstance(cycle, Answering):
                cycle.take(body)
            else:
                super().on_body(body)

        def on_message_complete(self) -> None:
            """Have a whole request answered."""
            cycle: object = self.cycle
            if isinstance(cycle, Answering):
                cycle.complete()
            else:
                super().on_message_complete()

    return Straight


class Answering:
    """One rank request on its way.

    Attributes:
        response_complete, disconnected, keep_alive: what uvicorn's protocol reads and sets of a cycle.
    """

    def __init__(self, worker: Worker, protocol: HttpToolsProtocol, keep_alive: bool) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._worker = worker
        self._protocol = protocol
        self._record = Record(worker.metrics)
        self._headers: Mapping[str, str] = {}
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._whole = False
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = keep_alive

    @property
    def message_event(self) -> Answering:
        """What uvicorn's protocol sets when the caller is gone; no attribute, which would be a cycle of references."""
        return self

    def begin(self, headers: list[tuple[bytes, bytes]], guard: CallerKey | None) -> None:
        """Check the head; of a header that stands twice the first one counts."""
        record, worker = self._record, self._worker
        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(headers)}
        self._headers = named
        record.traceparent = named.get("traceparent", "")
        try:
            if guard is not None:
                guard.check(named)
            self._order = order_of(worker, named, record)
            check_told_size(named, worker.settings.max_body_bytes)
        except ServiceError as exc:
            self._refuse(exc)

    def take(self, body: bytes) -> None:
        """Keep a part of the body, unless all is said already."""
        if self.response_complete:
            return
        self._size_bytes += len(body)
        self._chunks.append(body)
        try:
            check_size(self._size_bytes, self._worker.settings.max_body_bytes)
        except BodyTooLarge as exc:
            self._chunks.clear()
            self._refuse(exc)

    def complete(self) -> None:
        """Have the ranking computed."""
        if self.response_complete:
            return
        self._whole = True
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        try:
            Job(self._worker, self._order, body, self._record).begin(self._told)
        except ServiceError as exc:
            self._refuse(exc)

    def set(self) -> None:
        """Note that the caller is gone, which uvicorn's protocol tells by the cycle's event."""
        if self.disconnected and not self._whole and not self.response_complete:
            self._note(CLIENT_CLOSED_REQUEST)
            self.response_complete = True

    def _told(self, outcome: Outcome) -> None:
        if isinstance(outcome, bytes):
            self._answer(200, self._order.given.media_type, {"x-request-id": self._order.request_id}, outcome)
        elif isinstance(outcome, ServiceError):
            self._refuse(outcome)
        else:
            _LOG.error("request %s: a bug", request_id(self._record, self._headers), exc_info=outcome)
            self._refuse(ServiceError("service", found=repr(outcome), expected="no bug"))

    def _refuse(self, error: ServiceError) -> None:
        note_problem(self._record, error)
        document = problem(error, request_id(self._record, self._headers))
        self._answer(error.status, PROBLEM_MEDIA_TYPE, error.headers, orjson.dumps(document))

    def _answer(self, status: int, media_type: str, headers: Mapping[str, str], body: bytes) -> None:
        """Write an answer in one go."""
        self._note(status)
        self.response_complete = True
        protocol, record = self._protocol, self._record
        if self.disconnected or protocol.transport.is_closing():
            return
        parts = [STATUS_LINE[status]]
        for name, value in protocol.server_state.default_headers:
            parts += (name, b": ", value, b"\r\n")
        traced = f"traceparent: {record.traceparent}\r\n" if record.traceparent and record.trace_id else ""
        more = "".join([f"{name.lower()}: {value}\r\n" for name, value in headers.items()])
        last = "" if self.keep_alive else "connection: close\r\n"
        head = f"content-length: {len(body)}\r\ncontent-type: {media_type}\r\n{more}{traced}{last}\r\n"
        parts += (head.encode("latin-1"), body)
        protocol.transport.write(b"".join(parts))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def _note(self, status: int) -> None:
        seconds = time.perf_counter() - self._start
        worker = self._worker
        note_answer(self._record, worker.metrics, worker.settings.log_sample, RANK_PATH, "POST", status, seconds)
