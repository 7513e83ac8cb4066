"""Requests beyond the limit are refused at the door, before anything is parsed, routed or read."""

from __future__ import annotations

import uuid

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import PROBLEM_MEDIA_TYPE, problem
from service.worker import Worker


class Door:
    """Middleware that answers 503 to rank requests for which there is no permit."""

    def __init__(self, app: ASGIApp, worker: Worker, path: str) -> None:
        """Guard one path of an application."""
        self._app = app
        self._path = path
        self._admission = worker.admission
        self._refused = worker.metrics.requests.labels(path, "POST", "503")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what may find a permit."""
        if scope["type"] != "http" or self._admission.has_room or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        refusal = self._admission.refusal()
        self._refused.inc()
        body = orjson.dumps(problem(refusal, uuid.uuid4().hex))
        headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        headers.append((b"content-type", PROBLEM_MEDIA_TYPE.encode()))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
