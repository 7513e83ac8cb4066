"""Log lines: one JSON document each (or text, on a terminal), written by a thread of their own.

Whoever logs only puts a finished line into a bounded queue: a blocked or slow stderr delays no request. Lines that
find no room are dropped and counted. Fields besides the message come as `extra=fields(...)`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from prometheus_client import Counter

from service.settings import Settings

EXPOSURES, REQUESTS = "service.exposures", "service.requests"
ATOMIC_BYTES = 4096
"""Linux writes no more than this to a pipe at once without another process's bytes between them."""
GATHER_SECONDS = 0.02
"""How long lines gather before the thread wakes for them: it takes the interpreter's lock once for many."""
FLUSH_SECONDS = 1.0
"""Longest that the end of the process waits for lines to be written."""


def fields(**values: object) -> dict[str, object]:
    """Return `extra` for a log call whose line has these keys too."""
    return {"fields": values}


class JsonLines(logging.Formatter):
    """A line as one JSON document."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the document."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return _json(document)


class TextLines(logging.Formatter):
    """A line for people; fields follow the message as JSON."""

    def __init__(self) -> None:
        """Show time, severity, process and logger before the message."""
        super().__init__("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """Return the message with its fields."""
        found = _fields_of(record)
        return super().formatMessage(record) + (f" {_json(found)}" if found else "")


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, "fields", {})
    return found


def _json(document: Mapping[str, object]) -> str:
    try:
        return orjson.dumps(document, default=str).decode()
    except TypeError:  # a lone surrogate, say
        return json.dumps(document, default=str)


class LineWriter(logging.Handler):
    """Queues lines, up to a number of bytes, for a thread that writes them to a file descriptor."""

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        """Start the thread."""
        super().__init__()
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._lines: deque[bytes] = deque()
        self._held_bytes = 0
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._uncounted: Counts[str] = Counts()
        self._counter: Counter | None = None
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def count_in(self, counter: Counter) -> None:
        """Count dropped lines in a metric, those of before too."""
        with self._guard:
            self._counter = counter
            for kind, lines in self._uncounted.items():
                counter.labels(kind).inc(lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or drop it; never waits for the descriptor."""
        line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        with self._guard:
            if self._held_bytes + len(line) > self._limit_bytes:
                self._drop(record.name)
                return
            self._held_bytes += len(line)
            self._lines.append(line)
        self._wake.set()

    def flush(self) -> None:
        """Wait until all is written, for a second at most."""
        give_up = time.monotonic() + FLUSH_SECONDS
        while self._held_bytes and time.monotonic() < give_up:
            time.sleep(0.005)

    def _drop(self, logger: str) -> None:
        kind = _KINDS.get(logger, "other")
        if self._counter is None:
            self._uncounted[kind] += 1
        else:
            self._counter.labels(kind).inc()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(GATHER_SECONDS)
            self._wake.clear()
            with self._guard:
                lines, self._lines = self._lines, deque()
            for chunk in _chunks(lines):
                self._write(chunk)
                with self._guard:
                    self._held_bytes -= len(chunk)

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                time.sleep(GATHER_SECONDS)
            except OSError:  # nobody reads any more, or the disk is full
                with self._guard:
                    for _ in range(bytes(left).count(b"\n")):
                        self._drop("")
                return


_KINDS = {EXPOSURES: "exposures", REQUESTS: "requests"}


def _chunks(lines: deque[bytes]) -> Iterator[bytes]:
    """Give whole lines together, up to what is written at once."""
    chunk = b""
    for line in lines:
        if chunk and len(chunk) + len(line) > ATOMIC_BYTES:
            yield chunk
            chunk = b""
        chunk += line
    if chunk:
        yield chunk


def start_logging(settings: Settings) -> None:
    """Write log lines of the wanted severity to stderr."""
    writer = LineWriter(sys.stderr.fileno(), settings.log_buffer_bytes)
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    writer.setFormatter(TextLines() if as_text else JsonLines())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[writer], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def count_drops(counter: Counter) -> None:
    """Count in a metric what this process's log cannot write."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineWriter):
            handler.count_in(counter)
