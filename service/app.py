"""The FastAPI application: assembly of routes, errors and observation. Nothing happens at import."""

from __future__ import annotations

import logging

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.admin import admin_routes
from service.errors import PROBLEM_MEDIA_TYPE, ServiceError, problem
from service.observe import Observed, note_problem, record_of, request_id
from service.openapi import describe
from service.routes import content_routes, health_routes, rank_routes
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
    app.include_router(rank_routes(worker))
    app.include_router(v2_routes(worker))
    app.include_router(health_routes(worker))
    app.include_router(content_routes(worker))
    if worker.settings.admin_keys_file is not None and worker.reloader.source.history is not None:
        app.include_router(admin_routes(worker, worker.reloader.source.history))
    app.add_middleware(Observed, metrics=worker.metrics, log_sample=worker.settings.log_sample, tracing=worker.tracing)
    app.add_exception_handler(ServiceError, _error_handler)
    app.add_exception_handler(HTTPException, _http_error_handler)
    app.add_exception_handler(Exception, _bug_handler)
    describe(app, worker.serving)
    return app


async def _error_handler(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ServiceError)
    note_problem(record_of(request), exc)
    return problem_response(exc, request)


async def _http_error_handler(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    document = {"type": "about:blank", "title": str(exc.detail), "status": exc.status_code}
    return Response(orjson.dumps(document), exc.status_code, dict(exc.headers or {}), PROBLEM_MEDIA_TYPE)


async def _bug_handler(request: Request, exc: Exception) -> Response:
    _LOG.error("request %s: a bug", request_id(record_of(request), request.headers), exc_info=exc)
    return problem_response(ServiceError("service", found=repr(exc), expected="no bug"), request)


def problem_response(error: ServiceError, request: Request) -> Response:
    """Return an error as application/problem+json; /v2 clients find what they know as `error` in it."""
    document = problem(error, request_id(record_of(request), request.headers))
    if request.url.path.startswith("/v2"):
        document["error"] = document["detail"]
    return Response(orjson.dumps(document), error.status, error.headers, PROBLEM_MEDIA_TYPE)
