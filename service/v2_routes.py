"""The Open Inference Protocol's routes: health, metadata and infer, as general model servers have them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from bundle.features import CategoricalListFeature, NumericFeature
from service.admission import DEADLINE_HEADER
from service.caller import for_callers
from service.errors import HeaderInvalid, ModelUnknown, NotReady
from service.job import Job, Order
from service.keys import ADMIN_KEY_HEADER
from service.observe import record_of, request_id
from service.openapi import INFER_OPENAPI, refusals
from service.routes import CLIENT_CLOSED_REQUEST, FORCE_HEADER, read_body, wanted_variants
from service.snapshot import Snapshot
from service.wire import v2
from service.worker import Worker


def v2_routes(worker: Worker) -> APIRouter:
    """Return the /v2 routes."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol v2"])
    callers = for_callers(worker)

    def found(name: str, version: str | None = None) -> Snapshot:
        snapshot = worker.serving.choose(name)
        if version is not None and version != str(snapshot.model.version):
            raise ModelUnknown(f"version of {name!r}", found=repr(version), expected=str(snapshot.model.version))
        return snapshot

    @router.get("", summary="What this server is")
    async def server() -> dict[str, Any]:
        """Return name, version and extensions."""
        return {"name": "dlen-ranker", "version": "1", "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="Alive")
    async def live() -> dict[str, bool]:
        """Return 200 while the process answers at all."""
        return {"live": True}

    @router.get("/health/ready", summary="Ready", responses=refusals(503))
    async def ready() -> dict[str, bool]:
        """Return 200 while requests should be sent here."""
        if not worker.lifecycle.ready:
            raise NotReady("service", found="not ready", expected="ready")
        return {"ready": True}

    @router.get("/models/{name}", summary="A model's tensors", responses=refusals(404, 503))
    @router.get("/models/{name}/versions/{version}", summary="A version's tensors", responses=refusals(404, 503))
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Return inputs and outputs of a model."""
        return metadata_of(found(name, version))

    @router.get("/models/{name}/ready", summary="Whether a model serves", responses=refusals(404, 503))
    @router.get(
        "/models/{name}/versions/{version}/ready", summary="Whether a version serves", responses=refusals(404, 503)
    )
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Return 200 while the model serves."""
        return {"name": name, "ready": bool(found(name, version))}

    @router.post(
        "/models/{name}/infer",
        dependencies=callers,
        openapi_extra=INFER_OPENAPI,
        response_class=Response,
        summary="Order candidates",
    )
    @router.post(
        "/models/{name}/versions/{version}/infer",
        dependencies=callers,
        openapi_extra=INFER_OPENAPI,
        response_class=Response,
        summary="Order candidates",
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Return the candidates ordered by fused score, as tensors."""
        found(name, version)
        headers, record = request.headers, record_of(request)
        exchange = v2.Exchange(name, header_bytes(headers.get(v2.HEADER_LENGTH)))
        order = Order(
            deadline=worker.admission.deadline(headers),
            taken=exchange,
            given=exchange,
            compression=headers.get("content-encoding", "identity"),
            request_id=request_id(record, headers),
            wanted=wanted_variants(headers.get(FORCE_HEADER)),
            privileged=worker.admin_keys.holds(headers.get(ADMIN_KEY_HEADER)),
        )
        if not worker.admission.room_by(headers.get(DEADLINE_HEADER)):
            worker.admission.count_shed()
            raise worker.admission.refusal()
        try:
            body = await read_body(request, worker.settings.max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        answer = await Job(worker, order, body, record).answer()
        if exchange.answer_header_bytes is None:
            return Response(answer, media_type="application/json")
        length = {v2.HEADER_LENGTH: str(exchange.answer_header_bytes)}
        return Response(answer, media_type="application/octet-stream", headers=length)

    return router


def header_bytes(text: str | None) -> int | None:
    """Return the length of the JSON before binary tensors.

    Raises:
        HeaderInvalid: no number of bytes.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise HeaderInvalid(f"header {v2.HEADER_LENGTH}", found=repr(text[:40]), expected="a number of bytes")
    return int(text)


def metadata_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return a model's metadata as the protocol has it; -1 is any number."""
    inputs = [("candidates.id", "BYTES", [-1]), ("candidates.group", "BYTES", [-1])]
    places = {"item": (v2.ITEM, -1), "user": (v2.USER, 1), "context": (v2.CONTEXT, 1)}
    for feature in snapshot.model.encoder.schema.features:
        prefix, rows = places[feature.side]
        if isinstance(feature, NumericFeature):
            datatype = "FP64"
        else:
            datatype = "BYTES" if feature.value_type == "string" else "INT64"
        is_list = isinstance(feature, CategoricalListFeature)
        inputs.append((prefix + feature.name, datatype, [-1 if is_list else rows]))
        if is_list:
            inputs.append((prefix + feature.name + v2.LENGTHS, "INT64", [rows]))
    manifest = snapshot.model.manifest
    tasks = len(manifest.tasks)
    outputs = [("id", "BYTES", [-1]), ("score", "FP64", [-1]), ("p", "FP32", [-1, tasks])]
    if manifest.has_latent:
        outputs += [("p_up", "FP32", [-1]), ("p_joint", "FP32", [-1, tasks])]
    return {
        "name": snapshot.model.name,
        "versions": [str(snapshot.model.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": n, "datatype": d, "shape": s} for n, d, s in inputs],
        "outputs": [{"name": n, "datatype": d, "shape": s} for n, d, s in outputs],
        "parameters": {"tasks": list(manifest.task_names)},
    }
