"""Requests beyond the limit are refused at the door: by the protocol, as soon as their head is read.

No task is made, no application asked, and no byte of the body kept: at ten times what can be computed, most of what
a worker does is to refuse, and what a refusal costs is taken from those that are served.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.admission import DEADLINE_HEADER, Admission
from service.errors import PROBLEM_MEDIA_TYPE, problem
from service.tally import Counts


class Door:
    """Knows whether another request may come in, and what the others are answered."""

    def __init__(self, admission: Admission, path: str, refused: Counts) -> None:
        """Guard POSTs of one path; `refused` counts who is not let in."""
        self._admission = admission
        self._path = path.encode()
        self._with_query = self._path + b"?"
        self._refused = refused
        self._answers: dict[tuple[int, int], bytes] = {}

    def guards(self, url: bytes) -> bool:
        """Return whether a request's target is the guarded path."""
        return url == self._path or url.startswith(self._with_query)

    def lets_in(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether a permit is free that a request with this head can wait for."""
        if not self._admission.has_room:
            return False
        told = next((value for name, value in headers if name == _DEADLINE), None)
        return self._admission.room_by(None if told is None else told.decode("latin-1"))

    def refuse(self, keep_alive: bool) -> bytes:
        """Count a refusal, and return its answer."""
        self._admission.count_shed()
        self._refused.inc()
        key = (self._admission.in_flight, self._admission.limit)
        if key not in self._answers:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            refusal = self._admission.refusal()
            self._answers[key] = _answer(problem(refusal), refusal.status, refusal.headers)
        answer = self._answers[key]
        return answer if keep_alive else answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


def _answer(document: dict[str, object], status: int, headers: dict[str, str]) -> bytes:
    body = orjson.dumps(document)
    lines = {**headers, "content-type": PROBLEM_MEDIA_TYPE, "content-length": str(len(body))}
    head = "".join(f"{name.lower()}: {value}\r\n" for name, value in lines.items())
    return STATUS_LINE[status] + head.encode() + b"\r\n" + body


class _Refused:
    """What the protocol takes for the cycle of a request that was answered at the door."""

    response_complete = True
    message_event = asyncio.Event()


_REFUSED: Any = _Refused()
_DEADLINE = DEADLINE_HEADER.encode()
_MOST_ANSWERS = 1000


def guarded(door: Door, protocol: type[HttpToolsProtocol] = HttpToolsProtocol) -> type[HttpToolsProtocol]:
    """Return a protocol with a door."""

    class Guarded(protocol):  # type: ignore[misc, valid-type]
        """Answers 503 itself to whom the door does not let in, and throws their bodies away."""

        _closing = False

        def on_headers_complete(self) -> None:
            """Let the request in, or refuse it."""
            cycle: RequestResponseCycle | None = self.cycle  # type: ignore[has-type]
            if (
                not door.guards(self.url)
                or (cycle is not None and not cycle.response_complete)  # pipelined: answers must keep their order
                or self.parser.get_method() != b"POST"
                or door.lets_in(self.headers)
            ):
                super().on_headers_complete()
                return
            keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self.transport.write(door.refuse(keep_alive))
            self.cycle = _REFUSED
            self._closing = not keep_alive

        def on_body(self, body: bytes) -> None:
            """Throw a refused request's body away."""
            if self.cycle is not _REFUSED:
                super().on_body(body)

        def on_message_complete(self) -> None:
            """End the request; close where the caller does not want to go on (before, its body would break it)."""
            if self.cycle is not _REFUSED:
                super().on_message_complete()
            elif self._closing:
                self.transport.close()
            else:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    return Guarded
