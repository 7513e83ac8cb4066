"""The routes: what is read from HTTP, what is handed to the ranker, what is answered."""

from __future__ import annotations

import os
from collections.abc import Mapping

import orjson
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from service.caller import for_callers
from service.errors import BodyTooLarge, HeaderInvalid, NotReady
from service.job import Job, Order
from service.keys import ADMIN_KEY_HEADER
from service.observe import record_of, request_id
from service.openapi import RANK_OPENAPI, RANK_PATH, document_of, refusals
from service.record import Record
from service.wire.encodings import encoding_of_answer, encoding_of_body
from service.worker import Worker

FORCE_HEADER = "x-force-variant"
CLIENT_CLOSED_REQUEST = 499
"""Nginx's status for a caller that left before its request was whole; nobody reads it but the metrics."""


def rank_routes(worker: Worker) -> APIRouter:
    """Return /v1/rank."""
    router = APIRouter(tags=["rank"], dependencies=for_callers(worker))

    @router.post(RANK_PATH, openapi_extra=RANK_OPENAPI, response_class=Response, summary="Order candidates")
    async def rank(request: Request) -> Response:
        """Return the candidates ordered by fused score, ties by input order."""
        record = record_of(request)
        order = order_of(worker, request.headers, record)
        try:
            body = await read_body(request, worker.settings.max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        answer = await Job(worker, order, body, record).answer()
        return Response(answer, media_type=order.given.media_type, headers={"X-Request-Id": order.request_id})

    return router


def order_of(worker: Worker, headers: Mapping[str, str], record: Record) -> Order:
    """Return what a rank request's headers, by their names in lower case, ask for.

    Raises:
        HeaderInvalid, MediaTypeUnsupported: see `service.errors`.
    """
    return Order(
        deadline=worker.admission.deadline(headers),
        taken=encoding_of_body(headers.get("content-type")),
        given=encoding_of_answer(headers.get("accept")),
        compression=headers.get("content-encoding", "identity"),
        request_id=request_id(record, headers),
        wanted=wanted_variants(headers.get(FORCE_HEADER)),
        privileged=worker.admin_keys.holds(headers.get(ADMIN_KEY_HEADER)),
    )


def wanted_variants(text: str | None) -> dict[str, str]:
    """Return the variants that `layer=variant, …` wants.

    Raises:
        HeaderInvalid: it does not read so.
    """
    wanted: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        layer, _, variant = (side.strip() for side in part.partition("="))
        if not layer or not variant or layer in wanted or len(layer) > 256 or len(variant) > 256:
            raise HeaderInvalid(
                "header X-Force-Variant", found=repr(part[:40]), expected="layer=variant, each layer once"
            )
        wanted[layer] = variant
    return wanted


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body, never holding more than the limit and one chunk.

    Raises:
        BodyTooLarge: it is longer; by its own word, before a byte is read.
    """
    check_told_size(request.headers, limit_bytes)
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        check_size(size_bytes, limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def check_told_size(headers: Mapping[str, str], limit_bytes: int) -> None:
    """Check a body by its own word, before a byte of it is read.

    Raises:
        BodyTooLarge: it is longer than the limit.
    """
    told = headers.get("content-length", "0")
    if told.isdecimal() and int(told) > limit_bytes:
        raise BodyTooLarge("body", found=f"{told} bytes", expected=f"at most {limit_bytes}")


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Check what has been read of a body.

    Raises:
        BodyTooLarge: it is more than the limit.
    """
    if size_bytes > limit_bytes:
        raise BodyTooLarge("body", found=f"{size_bytes} bytes or more", expected=f"at most {limit_bytes}")


def health_routes(worker: Worker) -> APIRouter:
    """Return what balancers ask; open to anybody."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Alive")
    async def healthz() -> dict[str, str]:
        """Return 200 while the process answers at all."""
        return {"status": "alive"}

    @router.get("/readyz", summary="Ready", responses=refusals(503))
    async def readyz() -> dict[str, str]:
        """Return 200 while requests should be sent here: models warmed, config valid, not stopping."""
        if not worker.lifecycle.ready:
            found = "stopping" if worker.lifecycle.stop_at is not None else "starting"
            raise NotReady("service", found=found, expected="ready")
        return {"status": "ready"}

    return router


def content_routes(worker: Worker) -> APIRouter:
    """Return what tells what serves."""
    router = APIRouter(tags=["operation"], dependencies=for_callers(worker))

    @router.get("/v1/models", summary="Models that serve")
    async def models() -> Response:
        """Return name, version, tasks, features and measured quality of every model that serves."""
        documents = [document_of(snapshot) for _, snapshot in sorted(worker.serving.snapshots.items())]
        return Response(orjson.dumps({"models": documents}), media_type="application/json")

    @router.get("/v1/config", summary="The fusion config that serves", responses=refusals(503))
    async def config() -> Response:
        """Return the version and content of the fusion config, and the process that answers."""
        snapshot = next(iter(worker.serving.snapshots.values()), None)
        if snapshot is None:
            raise NotReady("service", found="starting", expected="ready")
        content = snapshot.fusion.config.model_dump(mode="json")
        document = {"version": snapshot.fusion.version, "pid": os.getpid(), "config": content}
        return Response(orjson.dumps(document), media_type="application/json")

    return router
