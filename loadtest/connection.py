"""One HTTP/1.1 connection with at most one request on its way; a raw protocol, since a client library is too slow.

Knows nothing of rates or of statistics.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools


class Owner(Protocol):
    """What a connection tells about itself."""

    def answered(self, connection: Connection, index: int, status: int, at_ns: int) -> None:
        """The answer to request `index` is complete."""

    def lost(self, connection: Connection, index: int) -> None:
        """The connection is closed; `index` is the unanswered request, or -1."""


class Connection(asyncio.Protocol):
    """Writes complete requests, parses the answers.

    Attributes:
        index: the request on its way, -1 when idle.
    """

    def __init__(self, owner: Owner) -> None:
        """Belong to `owner`."""
        self.index = -1
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send(self, index: int, request: bytes) -> None:
        """Send a request; the connection must be idle."""
        self.index = index
        if self._transport is not None:
            self._transport.write(request)

    def abort(self) -> None:
        """Close at once, dropping the request on its way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without deriving from it

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the loss (asyncio)."""
        self._transport = None
        index, self.index = self.index, -1
        self._owner.lost(self, index)

    def data_received(self, data: bytes) -> None:
        """Parse a part of an answer (asyncio)."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def on_message_complete(self) -> None:
        """Report a complete answer (httptools)."""
        at_ns = time.monotonic_ns()
        status = self._parser.get_status_code()
        if status < 200:
            return
        keep = self._parser.should_keep_alive()
        index, self.index = self.index, -1
        if not keep or index < 0:  # index < 0: an answer that nobody asked for
            self.abort()
        if index >= 0:
            self._owner.answered(self, index, status, at_ns)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()
