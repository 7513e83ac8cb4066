"""The admin routes: look at the config's history, go back to a version. Each wants an admin key."""

from __future__ import annotations

import logging
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from fusion.errors import FusionError, HistoryError
from fusion.history import History
from fusion.policy import parse_config
from service.errors import AdminRefused, BodyMalformed, StateFailed, VersionUnknown
from service.openapi import json_body, refusals
from service.routes import read_body
from service.snapshot import take_snapshot
from service.worker import Worker

_LOG = logging.getLogger("service.admin")
BODY_BYTES_LIMIT = 4096


class AdminBody(msgspec.Struct, forbid_unknown_fields=True):
    """What the admin calls take: who asks, for the audit line."""

    by: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "unnamed"


class RollbackBody(AdminBody, forbid_unknown_fields=True, kw_only=True):
    """The version to go back to, or as much of its hash as is unique."""

    version: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]


def admin_routes(worker: Worker, history: History) -> APIRouter:
    """Return /admin/config: look at the history, go back to a version, let go of it."""

    def check_key(request: Request, x_admin_key: Annotated[str | None, Header()] = None) -> None:
        if not worker.admin_keys.holds(x_admin_key):
            _LOG.warning("%s %s refused: no valid key", request.method, request.url.path)
            raise AdminRefused("header X-Admin-Key", found="no valid key", expected="one of the keys")

    router = APIRouter(
        prefix="/admin/config", tags=["admin"], dependencies=[Depends(check_key)], responses=refusals(403, 500)
    )

    @router.get("/history", summary="Versions that served")
    async def versions() -> Response:
        """Return the stored versions, the last one to become active first, what is pinned and what serves here."""
        return await run_in_threadpool(lambda: answer(worker, history))

    @router.post(
        "/rollback",
        summary="Serve an earlier version",
        responses=refusals(409, 413, 422),
        openapi_extra=json_body(RollbackBody),
    )
    async def rollback(request: Request) -> Response:
        """Pin a stored version for all workers, whatever the config on disk says."""
        body = parse(await read_body(request, BODY_BYTES_LIMIT), RollbackBody)
        return await run_in_threadpool(lambda: roll_back(worker, history, body))

    @router.post(
        "/unpin",
        summary="Serve the config on disk again",
        responses=refusals(413, 422),
        openapi_extra=json_body(AdminBody, required=False),
    )
    async def unpin(request: Request) -> Response:
        """Take the pin away."""
        body = parse(await read_body(request, BODY_BYTES_LIMIT) or b"{}", AdminBody)
        return await run_in_threadpool(lambda: let_go(worker, history, body))

    return router


Body = TypeVar("Body", bound=AdminBody)


def parse(data: bytes, kind: type[Body]) -> Body:
    """Return the body.

    Raises:
        BodyMalformed: it is not of the kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        raise BodyMalformed("body", found=str(exc), expected=f"{', '.join(kind.__struct_fields__)}") from exc


def roll_back(worker: Worker, history: History, body: RollbackBody) -> Response:
    """Pin a version that fits every model that serves; every worker follows.

    Raises:
        VersionUnknown: not stored, damaged, or it does not fit a model.
        StateFailed: the pin cannot be written.
    """
    try:
        version = history.resolve(body.version)
        config = parse_config(history.files_of(version))
        for snapshot in worker.serving.snapshots.values():
            take_snapshot(snapshot.model, config)
    except FusionError as exc:
        raise VersionUnknown(exc.thing, found=exc.found, expected=exc.expected) from exc
    try:
        history.pin(version, by=f"admin:{body.by}")
    except HistoryError as exc:
        raise StateFailed(exc.thing, found=exc.found, expected=exc.expected) from exc
    return answer(worker, history)


def let_go(worker: Worker, history: History, body: AdminBody) -> Response:
    """Take the pin away.

    Raises:
        StateFailed: it cannot be taken away.
    """
    try:
        history.unpin(by=f"admin:{body.by}")
    except HistoryError as exc:
        raise StateFailed(exc.thing, found=exc.found, expected=exc.expected) from exc
    return answer(worker, history)


def answer(worker: Worker, history: History) -> Response:
    """Return what is stored and pinned, and what serves in this worker now.

    Raises:
        StateFailed: the pin does not read.
    """
    try:
        pinned = history.pinned()
    except HistoryError as exc:
        raise StateFailed(exc.thing, found=exc.found, expected=exc.expected) from exc
    stored = [{"version": one.version, "last_active": one.last_active} for one in history.versions()]
    document: dict[str, Any] = {"serving": worker.reloader.config.version, "pinned": pinned, "versions": stored}
    return Response(orjson.dumps(document), media_type="application/json")
