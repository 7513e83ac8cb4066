"""More than can be computed, models that fail, and models that take too long."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from service.wire import arrow


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, make_bundle) -> Path:
    """Two models: `nan` fails for items of quality below -5, `slow` takes long for many items."""
    folder = tmp_path_factory.mktemp("faulty")
    for fault in ("nan", "slow"):
        make_bundle(folder / fault / "1", fault=fault)
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory, faulty, fusion_file, start_service):
    started = start_service(
        tmp_path_factory.mktemp("overload"), faulty, fusion_file, DLEN_FALLBACK_FEATURE="quality",
        DLEN_DRAIN_SECONDS="0", DLEN_DEADLINE_MS="30000", DLEN_MAX_IN_FLIGHT="3",
    )  # fmt: skip
    yield started
    started.stop()


def failing(body: dict, **more: object) -> dict:
    """A request that the model gives NaN for."""
    qualities = [0.3, -6.0, 0.9, None, 0.3]
    for candidate, quality in zip(body["candidates"], qualities, strict=True):
        candidate["features"]["quality"] = quality
    return {**body, "model": "nan", **more}


def test_several_models_must_be_chosen_from(service, body):
    response = service.rank(body)
    assert (response.status_code, response.json()["type"]) == (422, "urn:dlen:problem:model-choice-needed")
    assert service.rank({**body, "model": "nan"}).json()["model"] == "nan"


def test_a_failing_model_is_answered_with_the_fallback_order(service, body):
    before = service.metric("dlen_rank_degraded_total", reason="model failed")
    answer = service.rank(failing(body)).json()
    assert answer["degraded"] == "model failed"
    assert [item["id"] for item in answer["items"]] == ["c2", "c0", "c4", "c1", "c3"]
    assert all(item.keys() == {"id", "score"} for item in answer["items"])
    assert [i["id"] for i in service.rank(failing(body, top_k=2)).json()["items"]] == ["c2", "c0"]
    assert service.metric("dlen_rank_degraded_total", reason="model failed") == before + 2
    assert service.lines("service.requests", wanted=1, problem="model-failed", degraded="model failed", level="warning")


def test_a_fallback_order_is_given_in_arrow_too(service, body):
    response = service.rank(failing(body), accept=arrow.MEDIA_TYPE)
    with pa.ipc.open_stream(response.content) as reader:
        table = reader.read_all()
    assert table.column_names == ["id", "score"]
    assert table["id"].to_pylist() == ["c2", "c0", "c4", "c1", "c3"]
    assert json.loads(table.schema.metadata[b"dlen"])["degraded"] == "model failed"


def test_without_fallback_a_failing_model_is_an_error_that_tells_nothing(serve, faulty, body):
    service = serve("--model", "nan", models=faulty, DLEN_FALLBACK="none")
    response = service.rank(failing(body))
    assert (response.status_code, response.json()["type"]) == (500, "urn:dlen:problem:model-failed")
    assert "NaN" not in response.text
    assert service.rank({**failing(body), "candidates": body["candidates"][:1]}).status_code == 200


def test_a_model_that_overruns_the_deadline_is_answered_in_fallback_order_in_time(service, make_body):
    body = {**make_body(2000), "model": "slow"}
    answer = service.rank(body, **{"x-request-deadline-ms": "60"})
    assert (answer.status_code, answer.json()["degraded"]) == (200, "overrun")
    assert len(answer.json()["items"]) == 2000
    late = service.rank({**make_body(5), "model": "slow"}, **{"x-request-deadline-ms": "30"})
    assert (late.status_code, late.json()["type"]) == (504, "urn:dlen:problem:deadline-exceeded")
    patient = service.rank({**make_body(5), "model": "slow"})
    assert (patient.status_code, patient.json()["degraded"]) == (200, None)
    assert service.metric("dlen_rank_in_flight") == 0


def test_more_than_can_be_held_is_refused_at_once_and_the_rest_is_answered(service, make_body):
    body = json.dumps({**make_body(800), "model": "slow"})
    service.rank(body.encode())

    def send(_: int) -> tuple[int, str | None, float]:
        start = time.monotonic()
        response = httpx.post(f"{service.url}/v1/rank", content=body, timeout=30)
        return response.status_code, response.headers.get("retry-after"), time.monotonic() - start

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, range(24)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert all(after == "1" for status, after, _ in answers if status == 503)
    fastest_answer = min(seconds for status, _, seconds in answers if status == 200)
    refusals = sorted(seconds for status, _, seconds in answers if status == 503)
    assert refusals[len(refusals) // 2] < fastest_answer
    assert service.metric("dlen_rank_shed_total", reason="limit") >= statuses.count(503)
    assert 2 <= service.metric("dlen_rank_in_flight_limit") <= 3
    assert service.rank(body.encode()).status_code == 200


def test_the_health_check_answers_while_the_model_computes(service, make_body):
    thread = threading.Thread(target=lambda: service.rank({**make_body(2000), "model": "slow"}))
    thread.start()
    checks = 0
    with httpx.Client() as client:
        while thread.is_alive():
            checks += client.get(f"{service.url}/readyz").status_code == 200
    thread.join()
    assert checks > 3
