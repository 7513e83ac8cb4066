"""The FastAPI application: assembly of routes, errors and observation. Nothing happens at import."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.admin import admin_routes
from service.caller import CallerKey
from service.errors import PROBLEM_MEDIA_TYPE, DeadlineExceeded, ServiceError, problem, slug
from service.observe import Observed, record_of, request_id_of
from service.openapi import describe
from service.routes import content_routes, health_routes, rank_routes
from service.straight import Straight, only_route
from service.tracing import OFF
from service.v2_routes import v2_routes
from service.worker import Worker

_LOG = logging.getLogger("service.app")


def build_app(worker: Worker) -> FastAPI:
    """Return the application of a worker."""
    app = FastAPI(
        title="DLEN feed ranker",
        version="1",
        description="Orders a user's candidates by fused probabilities of a Deep Latent Emotion Network.",
        redoc_url=None,
        telemetry=OFF if worker.tracing is None else worker.tracing.config,
    )
    ranking = rank_routes(worker)
    app.include_router(ranking)
    app.include_router(v2_routes(worker))
    app.include_router(health_routes(worker))
    app.include_router(content_routes(worker))
    if worker.settings.admin_keys_file is not None and worker.reloader.source.history is not None:
        app.include_router(admin_routes(worker, worker.reloader.source.history))
    guard = None if worker.settings.keys_file is None else CallerKey(worker.caller_keys)
    app.add_middleware(Straight, route=only_route(ranking), guard=guard, refuse=_error_handler(worker))
    app.add_middleware(Observed, metrics=worker.metrics, log_sample=worker.settings.log_sample, tracing=worker.tracing)
    app.add_exception_handler(ServiceError, _error_handler(worker))
    app.add_exception_handler(HTTPException, _http_error_handler)
    app.add_exception_handler(Exception, _bug_handler)
    describe(app, worker.serving)
    return app


Handler = Callable[[Request, Exception], Awaitable[Response]]


def _error_handler(worker: Worker) -> Handler:
    async def answer(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, ServiceError)
        record = record_of(request)
        record.problem, record.error = slug(type(exc)), str(exc)[:500]
        if isinstance(exc, DeadlineExceeded):
            worker.metrics.shed.labels("deadline").inc()
        elif exc.status < 500:
            worker.metrics.refused.labels(slug(type(exc))).inc()
        return problem_response(exc, request)

    return answer


async def _http_error_handler(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    document = {"type": "about:blank", "title": str(exc.detail), "status": exc.status_code}
    return Response(orjson.dumps(document), exc.status_code, dict(exc.headers or {}), PROBLEM_MEDIA_TYPE)


async def _bug_handler(request: Request, exc: Exception) -> Response:
    _LOG.error("request %s: a bug", request_id_of(request), exc_info=exc)
    return problem_response(ServiceError("service", found=repr(exc), expected="no bug"), request)


def problem_response(error: ServiceError, request: Request) -> Response:
    """Return an error as application/problem+json; /v2 clients find what they know as `error` in it."""
    document = problem(error, request_id_of(request))
    if request.url.path.startswith("/v2"):
        document["error"] = document["detail"]
    return Response(orjson.dumps(document), error.status, error.headers, PROBLEM_MEDIA_TYPE)
