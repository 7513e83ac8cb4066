"""The OpenAPI document: what our own parsing and writing take and give, told truly, with examples."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import PROBLEM_MEDIA_TYPE
from service.snapshot import Snapshot
from service.wire.answer import RankAnswer
from service.wire.arrow import MEDIA_TYPE as ARROW
from service.wire.document import RankBody

RANK_EXAMPLE: dict[str, Any] = {
    "request_id": "r-1",
    "user": {"id": "712", "features": {"user_active_degree": "full_active"}},
    "context": {"tab": 1, "hour": 20},
    "candidates": [
        {"id": "5239", "features": {"author_id": 8079479}, "group": "8079479"},
        {"id": "5240", "features": {"author_id": None}},
    ],
    "top_k": 50,
}
"""A request to a model with these features; `/v1/models` tells a model's own."""

COLUMNS_EXAMPLE: dict[str, Any] = {
    **RANK_EXAMPLE,
    "candidates": {"id": ["5239", "5240"], "features": {"author_id": [8079479, None]}, "group": ["8079479", None]},
}
"""The same request, columnar."""

ANSWER_EXAMPLE: dict[str, Any] = {
    "request_id": "r-1",
    "model": "dlen",
    "model_version": "3",
    "config_version": "sha256:9f2c…",
    "assignments": {},
    "degraded": None,
    "missing_features": 1,
    "items": [
        {"id": "5239", "score": 0.41, "p_up": 0.62, "p_joint": {"click": 0.31}, "p": {"click": 0.33}},
        {"id": "5240", "score": 0.22, "p_up": 0.31, "p_joint": {"click": 0.12}, "p": {"click": 0.18}},
    ],
}

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:dlen:problem:duplicate-candidate"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "thing": {"type": "string", "description": "What is wrong; for bodies the JSON path."},
        "found": {"description": "What was found there."},
        "expected": {"description": "What was expected there."},
    },
}

_REFUSALS = {
    400: "A header does not parse.",
    404: "The model is not served.",
    413: "The body is too large.",
    415: "The media type is not supported.",
    422: "The body does not parse, or names features or ids that cannot be.",
    503: "At the limit or not ready; Retry-After says when to try again.",
    504: "The deadline passed.",
}


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


RANK_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/RankBody"},
                "examples": {
                    "rows": {"summary": "One object per candidate", "value": RANK_EXAMPLE},
                    "columns": {"summary": "One list per property", "value": COLUMNS_EXAMPLE},
                },
            },
            ARROW: {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "X-Request-Deadline-Ms",
            "in": "header",
            "required": False,
            "description": "How long the caller waits; later work is dropped unscored.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
        }
    ],
    "responses": {
        "200": {
            "description": "The ordered feed.",
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/RankAnswer"},
                    "example": ANSWER_EXAMPLE,
                },
                ARROW: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **{str(status): _problem(text) for status, text in _REFUSALS.items()},
    },
}


def describe(app: FastAPI) -> None:
    """Let the application's OpenAPI document hold the wire types; it is made on first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, components = msgspec.json.schema_components(
                (RankBody, RankAnswer), ref_template="#/components/schemas/{name}"
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(components, Problem=PROBLEM_SCHEMA)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return what /v1/models says of one model."""
    model, manifest = snapshot.model, snapshot.model.manifest
    return {
        "name": model.name,
        "version": str(model.version),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "tasks": [{"name": task.name, "kind": task.kind, "base_rate": task.base_rate} for task in manifest.tasks],
        "has_p_up": manifest.has_latent,
        "features": [
            {"name": f.name, "side": f.side, "kind": f.kind, "default": f.default}
            for f in model.encoder.schema.features
        ],
        "offline_metrics": manifest.offline_metrics,
        "config_version": snapshot.fusion.version,
    }
