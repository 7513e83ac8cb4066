"""The OpenAPI document: what our own parsing and writing take and give, told truly, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bundle.encode import SchemaEncoder
from service.errors import PROBLEM_MEDIA_TYPE
from service.openapi_features import columns_schema, features_example, features_schema
from service.snapshot import Serving, Snapshot
from service.wire.answer import RankAnswer
from service.wire.arrow import MEDIA_TYPE as ARROW
from service.wire.document import RankBody
from service.wire.v2 import InferBody

JSON = "application/json"
RANK_PATH = "/v1/rank"

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
    401: "No valid key; WWW-Authenticate says how to show one.",
    403: "No valid admin key.",
    404: "The model is not served.",
    409: "The version is not stored, or cannot serve.",
    413: "The body is too large.",
    415: "The media type is not supported.",
    422: "The body does not parse, or names features or ids that cannot be.",
    500: "Our fault; the log has it under the request id.",
    503: "At the limit or not ready; Retry-After says when to try again.",
    504: "The deadline passed.",
}


def json_body(kind: type, *, required: bool = True) -> dict[str, Any]:
    """Return `openapi_extra` of a route that reads a JSON body of a kind."""
    _, components = msgspec.json.schema_components((kind,), ref_template="#/components/schemas/{name}")
    return {"requestBody": {"required": required, "content": {JSON: {"schema": components[kind.__name__]}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the problem documents of statuses, as a route's `responses`."""
    return {status: _problem(_REFUSALS[status]) for status in statuses}


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_DEADLINE = {
    "name": "X-Request-Deadline-Ms",
    "in": "header",
    "required": False,
    "description": "How long the caller waits; later work is dropped unscored.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
}
_REFUSED = {str(status): answer for status, answer in refusals(400, 404, 413, 415, 422, 500, 503, 504).items()}
_BINARY = {"schema": {"type": "string", "format": "binary"}}

RANK_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/RankBody"}}, ARROW: _BINARY},
    },
    "parameters": [_DEADLINE],
    "responses": {
        "200": {
            "description": "The ordered feed.",
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/RankAnswer"}, "example": ANSWER_EXAMPLE},
                ARROW: _BINARY,
            },
        },
        **_REFUSED,
    },
}
INFER_OPENAPI: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/InferBody"}}}},
    "parameters": [_DEADLINE],
    "responses": {
        "200": {
            "description": "The ordered feed as tensors; binary ones follow the JSON where the request asks.",
            "content": {
                JSON: {"schema": {"type": "object", "required": ["model_name", "model_version", "id", "outputs"]}},
                "application/octet-stream": _BINARY,
            },
        },
        **_REFUSED,
    },
}


def describe(app: FastAPI, serving: Serving) -> None:
    """Let the application's OpenAPI document hold the wire types and the serving model's features."""
    made_for: list[tuple[str, int]] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal made_for
        snapshots = list(serving.snapshots.values())
        versions = [(snapshot.model.name, snapshot.model.version) for snapshot in snapshots]
        if app.openapi_schema is None or versions != made_for:
            app.openapi_schema, made_for = _document(app, snapshots), versions
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, snapshots: list[Snapshot]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, components = msgspec.json.schema_components(
        (RankBody, RankAnswer, InferBody), ref_template="#/components/schemas/{name}"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components, Problem=PROBLEM_SCHEMA)
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which is never answered
        schemas.pop(name, None)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    known = {
        "name": [snapshot.model.name for snapshot in snapshots],
        "version": sorted({str(snapshot.model.version) for snapshot in snapshots}),
    }
    for operation in operations:
        answers = operation["responses"]
        if "HTTPValidationError" in str(answers.get("422", {}).get("content", {}).get(JSON)):
            answers["422"]["content"].pop(JSON)
            if not answers["422"]["content"]:
                del answers["422"]
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                parameter["schema"]["enum"] = known[parameter["name"]]
        if "security" in operation:
            answers["401"] = _problem(_REFUSALS[401])
    if len(snapshots) == 1:  # of several models, features are told by /v1/models
        model = snapshots[0].model
        _tell_features(document, model.encoder, model.items.some_ids)
    return document


def _tell_features(document: dict[str, Any], encoder: SchemaEncoder, known: Sequence[str]) -> None:
    """Put the model's features in the place of any names, and an example that can be sent as it is."""
    schemas = document["components"]["schemas"]
    schemas["User"]["properties"]["features"] = features_schema(encoder, "user")
    schemas["Candidate"]["properties"]["features"] = features_schema(encoder, "item")
    schemas["RankBody"]["properties"]["context"] = features_schema(encoder, "context")
    schemas["CandidateColumns"]["properties"]["features"] = columns_schema(encoder)
    user, context, item = (features_example(encoder, side) for side in ("user", "context", "item"))
    head = {"request_id": "r-1", "user": {"id": "712", "features": user}, "context": context, "top_k": 50}
    rows = [{"id": "5239", "features": item, "group": "a"}, {"id": "5240", "features": dict.fromkeys(item)}]
    columns = {"id": ["5239", "5240"], "features": {n: [v, None] for n, v in item.items()}, "group": ["a", None]}
    ids = [*known[:2]] or columns["id"]
    ids_summary = "Ids only: features come from the item table" if known else "Ids only: features take their defaults"
    document["paths"][RANK_PATH]["post"]["requestBody"]["content"][JSON]["examples"] = {
        "rows": {"summary": "One object per candidate", "value": {**head, "candidates": rows}},
        "columns": {"summary": "One list per property", "value": {**head, "candidates": columns}},
        "ids": {"summary": ids_summary, "value": {**head, "candidates": {"id": ids}}},
    }


def document_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return what /v1/models says of one model."""
    model, manifest = snapshot.model, snapshot.model.manifest
    return {
        "name": model.name,
        "version": str(model.version),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "graph": "fused" if model.engine.fused else "stock",
        "tasks": [{"name": task.name, "kind": task.kind, "base_rate": task.base_rate} for task in manifest.tasks],
        "has_p_up": manifest.has_latent,
        "items": 0 if manifest.items is None else manifest.items.count,
        "features": [
            {"name": f.name, "side": f.side, "kind": f.kind, "default": f.default}
            for f in model.encoder.schema.features
        ],
        "offline_metrics": manifest.offline_metrics,
        "config_version": snapshot.fusion.version,
    }
