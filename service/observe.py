"""Rate, errors and duration of every route, seen from outside the application; the request's id; its log line."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
import zlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, ServiceError, slug
from service.logs import REQUESTS, fields
from service.metrics import Metrics
from service.record import PROBES, Record
from service.tracing import Tracing

_REQUESTS = logging.getLogger(REQUESTS)
_PROCESS = secrets.token_hex(8)
_NUMBERS = itertools.count()
UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class Observed:
    """Middleware that counts, times and logs requests by route template, never by path."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log_sample: float, tracing: Tracing | None) -> None:
        """Wrap an application; `log_sample` is the share of good requests that are logged."""
        self._app = app
        self._metrics = metrics
        self._log_sample = log_sample
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        record = Record(self._metrics)
        scope.setdefault("state", {})["record"] = record
        for name, value in scope["headers"]:
            if name == b"traceparent":
                record.traceparent = value.decode("latin-1")
        if self._tracing is not None:
            self._tracing.take_context(record)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._tracing is not None:
                    self._tracing.tell(record, method, route_of(scope))  # now: the span ends with the answer
                if record.trace_id:
                    message["headers"] = [*message["headers"], (b"traceparent", record.traceparent.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - start
            note_answer(record, self._metrics, self._log_sample, route_of(scope), method, status, seconds)


def note_answer(
    record: Record, metrics: Metrics, share: float, route: str, method: str, status: int, seconds: float
) -> None:
    """Count, time and, where it must be or is of the share, log an answered request."""
    metrics.note_request(route, method, status, seconds)
    if route not in PROBES and must_log(record, status, share):
        log_request(record, method, route, status, seconds)
    record.snapshot = record.ranking = None  # an idle connection keeps its last request, which must not keep a model


def note_problem(record: Record, error: ServiceError) -> None:
    """Note and count what a caller is told went wrong."""
    kind = type(error)
    record.problem, record.error = slug(kind), str(error)[:500]
    if isinstance(error, DeadlineExceeded):
        record.metrics.shed.labels("deadline").inc()
    elif error.status < 500:
        record.metrics.refused.labels(slug(kind)).inc()


def route_of(scope: Scope) -> str:
    """Return the template of the route that a request took; FastAPI's own pages, which set none, by their path."""
    route, app = scope.get("route"), scope.get("app")
    if route is None and isinstance(app, FastAPI) and scope["path"] in (app.docs_url, app.openapi_url):
        return str(scope["path"])
    return getattr(route, "path", UNMATCHED)


def must_log(record: Record, status: int, share: float) -> bool:
    """Return whether a request has a line: each that failed or was degraded, and a share of the others.

    Shed requests count as the others do: an overload must not be made worse by its log.
    """
    failed = status >= 400 and record.problem != "overloaded"
    return failed or record.degraded is not None or is_sampled(record.request_id, share)


def is_sampled(request_id: str, share: float) -> bool:
    """Return whether a request belongs to the sample; by its id, so that all replicas and callers agree."""
    return zlib.crc32(request_id.encode("utf-8", "replace")) < share * 2**32


def log_request(record: Record, method: str, route: str, status: int, seconds: float) -> None:
    """Write the line of an answered request."""
    level = logging.INFO
    if status >= 500:
        level = logging.WARNING if status in (503, 504) else logging.ERROR
    elif record.degraded is not None:
        level = logging.WARNING
    if not _REQUESTS.isEnabledFor(level):
        return
    found: dict[str, Any] = {
        "request_id": record.request_id or None,
        "trace_id": record.trace_id,
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
        "candidates": record.candidates,
        "degraded": record.degraded,
        "problem": record.problem,
        "error": record.error,
    }
    if record.stages:
        found["stages_ms"] = {name: round((end - start) * 1000, 3) for name, start, end in list(record.stages)}
    if record.snapshot is not None:
        found["model"] = record.snapshot.model.name
        found["model_version"] = str(record.snapshot.model.version)
        found["config_version"] = record.snapshot.fusion.version
    if record.ranking is not None:
        found["assignments"] = dict(record.ranking.decision.assignments)
    told = {name: value for name, value in found.items() if value is not None}
    _REQUESTS.log(level, "%s %s %d", method, route, status, extra=fields(**told))


def record_of(request: Request) -> Record:
    """Return what is noted of a request."""
    record: Record = request.scope["state"]["record"]
    return record


def request_id(record: Record, headers: Mapping[str, str]) -> str:
    """Return the id that the caller's X-Request-Id gives, or a new one; the same all through a request."""
    if not record.request_id:
        given = headers.get("x-request-id", "")
        usable = 0 < len(given) <= 256 and given.isprintable()
        record.request_id = given if usable else f"{_PROCESS}{next(_NUMBERS):016x}"
    return record.request_id
