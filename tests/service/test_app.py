"""The service as a caller sees it: a real process on a real port."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from service.wire.encodings import parse_json


def test_a_rank_request_is_answered_in_descending_order_of_score(running, body):
    answer = running.rank(body).json()
    scores = [item["score"] for item in answer["items"]]
    assert sorted(scores, reverse=True) == scores
    assert {c["id"] for c in body["candidates"]} == {item["id"] for item in answer["items"]}
    assert tuple(answer[key] for key in ("request_id", "model", "model_version", "degraded", "missing_features")) == (
        "r-1",
        "tiny",
        "1",
        None,
        0,
    )
    assert answer["config_version"].startswith("sha256:")


def test_scores_are_the_policys_of_the_probabilities_shown(running, body):
    for item in running.rank(body).json()["items"]:
        joint, marginal = item["p_joint"], item["p"]
        score = joint["click"] + 3 * joint["like"] - 2 * marginal["hate"] + 0.5 * item["p_up"]
        if score > 1e-3:  # below it stands the squeezed, order-keeping part
            assert item["score"] == pytest.approx(score, abs=2e-3 + 1e-3 * abs(score))


def test_equal_candidates_keep_their_order(running, body):
    body["candidates"] = [{"id": f"x{i}", "features": {"author": 7}} for i in range(20)]
    assert [f"x{i}" for i in range(20)] == [item["id"] for item in running.rank(body).json()["items"]]


def test_a_candidates_score_does_not_depend_on_its_neighbours(running, body):
    together = {item["id"]: item["score"] for item in running.rank(body).json()["items"]}
    for candidate in body["candidates"]:
        alone = running.rank({**body, "candidates": [candidate]}).json()["items"][0]
        assert together[candidate["id"]] == pytest.approx(alone["score"], rel=1e-5)


def test_no_candidates_give_an_empty_list(running, body):
    assert running.rank({**body, "candidates": []}).json()["items"] == []


@pytest.mark.parametrize(("top_k", "returned"), [(0, 0), (2, 2), (5, 5), (99, 5), (None, 5)])
def test_top_k_cuts_the_list(running, body, top_k, returned):
    items = running.rank({**body, "top_k": top_k}).json()["items"]
    assert returned == len(items)
    assert running.rank(body).json()["items"][:returned] == items


def test_missing_features_take_the_default_and_are_counted(running, body):
    before = running.metric("dlen_feature_missing_total", feature="quality")
    del body["candidates"][1]["features"]["quality"]
    body["candidates"][2]["features"]["quality"] = None
    del body["context"]["hour"]
    assert running.rank(body).json()["missing_features"] == 3
    assert before + 2 == running.metric("dlen_feature_missing_total", feature="quality")


def test_probabilities_are_float32_to_the_last_digit(running, body):
    for item in running.rank(body).json()["items"]:
        for value in [item["p_up"], *item["p"].values()]:
            assert str(np.float32(value)) == str(value) or float(np.float32(value)) == pytest.approx(value, rel=1e-7)


def test_the_callers_request_id_is_echoed_and_a_missing_one_is_made_up(running, body):
    del body["request_id"]
    first, second = running.rank(body).json(), running.rank(body).json()
    assert first["request_id"] != second["request_id"] != ""
    named = running.rank(body, **{"x-request-id": "abc"})
    assert (named.json()["request_id"], named.headers["x-request-id"]) == ("abc", "abc")


def changed(path: str, value: Any) -> Any:
    """A function that sets `path` (dots and numbers) of a request to a value."""

    def change(request: dict[str, Any]) -> bytes:
        node: Any = request
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdecimal() else node[part]
        node[int(last) if last.isdecimal() else last] = value
        return json.dumps(request).encode()

    return change


def raw(text: bytes) -> Any:
    return lambda request: text


def spliced(old: str, new: str) -> Any:
    return lambda request: json.dumps(request).replace(old, new, 1).encode()


BAD = {
    "no body": (raw(b""), 422, "body", "truncated"),
    "cut off": (raw(b'{"candidates": ['), 422, "body", "truncated"),
    "not json": (raw(b"rank me"), 422, "body", "malformed"),
    "a list": (raw(b"[]"), 422, "$", "got `array`"),
    "not utf-8": (raw(b'{"candidates": [], "request_id": "\xff"}'), 422, "body", "UTF-8"),
    "a lone surrogate": (raw(b'{"candidates": [], "request_id": "\\ud800"}'), 422, "body", ""),
    "deep nesting": (raw(b'{"candidates": [], "context": {"hour": ' + b"[" * 5000), 422, "body", ""),
    "no candidates": (raw(b"{}"), 422, "$", "candidates"),
    "unknown key": (changed("candidate", []), 422, "$", "candidate"),
    "unknown key of a candidate": (changed("candidates.1.score", 1), 422, "$.candidates[1]", "score"),
    "a candidate without id": (spliced('"id": "c0", ', ""), 422, "$.candidates[0]", "id"),
    "an id that is a number": (changed("candidates.3.id", 7), 422, "$.candidates[3].id", "int"),
    "a long id": (changed("candidates.0.id", "x" * 300), 422, "$.candidates[0].id", "256"),
    "top_k below 0": (changed("top_k", -1), 422, "$.top_k", "0"),
    "top_k a text": (changed("top_k", "5"), 422, "$.top_k", "str"),
    "explain a number": (changed("explain", 1), 422, "$.explain", "int"),
    "twice the same id": (changed("candidates.3.id", "c1"), 422, "candidates[3].id", "c1"),
    "too many candidates": (lambda r: json.dumps({"candidates": [{"id": str(i)} for i in range(51)]}).encode(),
                            422, "candidates", "51"),
    "unknown item feature": (changed("candidates.2.features.autor", 1), 422, "candidates: feature 'autor'", ""),
    "unknown user feature": (changed("user.features.agee", 1), 422, "user.features: feature 'agee'", ""),
    "unknown context feature": (changed("context.minute", 1), 422, "context: feature 'minute'", ""),
    "a user feature in the context": (changed("context.age", 1), 422, "context: feature 'age'", ""),
    "an item feature at the user": (changed("user.features.author", 1), 422, "user.features: feature 'author'", ""),
    "a text for a number": (changed("user.features.age", "25"), 422, "user.features: feature 'age' row 0", "'25'"),
    "a number for a text": (changed("user.features.activity", 3), 422, "user.features: feature 'activity' row 0", "3"),
    "a fraction for an integer": (changed("candidates.4.features.author", 1.5), 422,
                                  "candidates: feature 'author' row 4", "1.5"),
    "a boolean": (changed("candidates.4.features.author", True), 422, "candidates: feature 'author' row 4", "True"),
    "an object": (changed("candidates.0.features.quality", {}), 422, "candidates: feature 'quality' row 0", "dict"),
    "no list for a list": (changed("candidates.1.features.tags", "a"), 422, "candidates: feature 'tags' row 1", "'a'"),
    "null in a list": (changed("candidates.1.features.tags", ["a", None]), 422, "candidates: feature 'tags' row 1", ""),
    "an integer beyond 64 bits": (changed("candidates.0.features.author", 2**70), 422, "candidates: feature 'author'",
                                  "64"),
    "NaN": (changed("candidates.0.features.quality", float("nan")), 422, "body", "malformed"),
    "Infinity": (changed("candidates.0.features.quality", float("inf")), 422, "body", "malformed"),
    "a number beyond float64": (spliced('"quality": -0.3', '"quality": 1e999'), 422, "", "range"),
    "a huge integer for a number": (spliced('"quality": -0.3', '"quality": 1' + "0" * 400), 422, "", ""),
    "unknown model": (changed("model", "other"), 404, "model", "other"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_problem_document_naming_thing_found_and_expected(running, body, case):
    make, status, thing, found = BAD[case]
    response = running.rank(make(copy.deepcopy(body)))
    assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])
    document = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:dlen:problem:")
    assert thing in document["thing"]
    assert found in str(document["found"])
    assert document["expected"]
    assert len(document["detail"]) < 1000


def test_a_body_over_the_limit_is_413(running, body):
    response = running.rank({**body, "request_id": "x" * 30_000})
    assert (response.status_code, response.json()["type"]) == (413, "urn:dlen:problem:body-too-large")

    def chunks():
        for _ in range(30):
            yield b"x" * 1000

    chunked = running.client.post(f"{running.url}/v1/rank", content=chunks())
    assert chunked.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/csv"}, 415),
        ({"content-encoding": "br"}, 415),
        ({"x-request-deadline-ms": "soon"}, 400),
        ({"x-request-deadline-ms": "0"}, 400),
        ({"x-request-deadline-ms": "-5"}, 400),
        ({"x-request-deadline-ms": "9" * 12}, 400),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"x-request-deadline-ms": "5000"}, 200),
    ],
)
def test_headers_are_checked(running, body, headers, status):
    assert status == running.rank(body, **headers).status_code


def test_other_paths_and_methods_are_problem_documents(running):
    for path, status in (("/nowhere", 404), ("/v1/rank", 405)):
        response = running.get(path)
        assert (status, "application/problem+json") == (response.status_code, response.headers["content-type"])


def test_models_and_config_tell_what_serves(running, body):
    answer = running.rank(body).json()
    (model,) = running.get("/v1/models").json()["models"]
    assert (answer["model"], answer["model_version"]) == (model["name"], model["version"])
    assert [task["name"] for task in model["tasks"]] == ["click", "like", "hate"]
    assert {"activity", "age", "hour", "author", "quality", "tags"} == {f["name"] for f in model["features"]}
    config = running.get("/v1/config").json()
    assert answer["config_version"] == config["version"]
    assert {"feed"} == set(config["config"]["policies"])


def test_health_and_docs_answer(running):
    assert [running.get(path).status_code for path in ("/healthz", "/readyz", "/docs")] == [200, 200, 200]


@pytest.mark.parametrize("page", ["/docs", "/openapi.json"])
def test_pages_of_the_document_are_counted_as_themselves(running, page):
    before = [running.metric("dlen_http_requests_total", route=route) or 0 for route in (page, "unmatched")]
    running.get(page)
    running.get(page + "/nowhere")
    after = [running.metric("dlen_http_requests_total", route=route) for route in (page, "unmatched")]
    assert after == [before[0] + 1, before[1] + 1]


def test_the_openapi_document_describes_what_is_really_answered(running, body):
    document = running.get("/openapi.json").json()
    rank = document["paths"]["/v1/rank"]["post"]
    schemas = document["components"]["schemas"]
    assert set(schemas["RankAnswer"]["properties"]) == set(running.rank(body).json())
    item = running.rank(body).json()["items"][0]
    assert set(schemas["RankedItem"]["properties"]) == set(item) | {"explanation"}
    for example in rank["requestBody"]["content"]["application/json"]["examples"].values():
        parse_json(json.dumps(example["value"]).encode(), 10, "x")
    assert {"200", "400", "404", "413", "415", "422", "503", "504"} <= set(rank["responses"])


def test_metrics_stand_on_their_own_port_and_count_requests(running, body):
    labels = {"route": "/v1/rank", "method": "POST", "status": "200"}
    before = running.metric("dlen_http_requests_total", **labels)
    stages = running.metric("dlen_rank_stage_seconds_count", stage="predict")
    rows = running.metric("dlen_feature_rows_total", part="item")
    for _ in range(3):
        running.rank(body)
    assert before + 3 == running.metric("dlen_http_requests_total", **labels)
    assert stages + 3 == running.metric("dlen_rank_stage_seconds_count", stage="predict")
    assert rows + 15 == running.metric("dlen_feature_rows_total", part="item")
    assert running.metric("dlen_model_info", model="tiny", version="1") == 1
    assert running.metric("dlen_rank_in_flight") == 0
    assert running.get("/metrics").status_code == 404


def test_metric_labels_never_hold_what_a_caller_chose(running, body):
    running.get("/some/secret-path")
    running.client.request("SECRET", running.url + "/v1/rank")
    body["candidates"][0]["features"]["secret"] = 1
    running.rank(body, **{"x-request-id": "secret"})
    text = running.metrics()
    assert "secret" not in text.lower()
    assert '"c1"' not in text and '"u1"' not in text
