"""The Open Inference Protocol, spoken byte by byte as its specification says."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

HEADER = "Inference-Header-Content-Length"
NUMPY = {"INT64": "<i8", "FP64": "<f8", "FP32": "<f4", "INT32": "<i4"}


def tensors_of(body: dict[str, Any]) -> dict[str, tuple[str, list[Any]]]:
    """A JSON request's tensors: name → (datatype, values)."""
    rows = body["candidates"]
    features = [row["features"] for row in rows]
    return {
        "candidates.id": ("BYTES", [row["id"] for row in rows]),
        "candidates.group": ("BYTES", [row["group"] for row in rows]),
        "candidates.features.author": ("INT64", [f["author"] for f in features]),
        "candidates.features.quality": ("FP64", [f["quality"] for f in features]),
        "candidates.features.tags": ("BYTES", [tag for f in features for tag in f["tags"]]),
        "candidates.features.tags.lengths": ("INT64", [len(f["tags"]) for f in features]),
        "user.features.activity": ("BYTES", [body["user"]["features"]["activity"]]),
        "user.features.age": ("FP64", [body["user"]["features"]["age"]]),
        "context.hour": ("INT64", [body["context"]["hour"]]),
    }


def as_bytes(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in values)
    return np.array(values, NUMPY[datatype]).tobytes()


def infer(service, body, *, binary: bool, path: str = "tiny", change: Any = None, **more: Any):
    tensors = tensors_of(body)
    inputs, blobs = [], b""
    for name, (datatype, values) in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(values)]}
        if binary:
            blob = as_bytes(datatype, values)
            blobs += blob
            entry["parameters"] = {"binary_data_size": len(blob)}
        else:
            entry["data"] = values
        inputs.append(entry)
    document = {"id": body["request_id"], "inputs": inputs, "parameters": {"user_id": "u1"}, **more}
    if change:
        change(document)
    text = json.dumps(document).encode()
    headers = {HEADER: str(len(text))} if binary else {}
    return service.client.post(f"{service.url}/v2/models/{path}/infer", content=text + blobs, headers=headers)


def read(response) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer's JSON and its tensors, binary ones decoded."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get(HEADER, len(response.content)))
    document, rest = json.loads(response.content[:length]), response.content[length:]
    tensors = {}
    for output in document["outputs"]:
        if "data" in output:
            values = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            blob, rest = rest[:size], rest[size:]
            if output["datatype"] == "BYTES":
                values = []
                while blob:
                    end = 4 + int.from_bytes(blob[:4], "little")
                    values.append(blob[4:end].decode())
                    blob = blob[end:]
            else:
                values = np.frombuffer(blob, NUMPY[output["datatype"]]).tolist()
        shaped = values if output["datatype"] == "BYTES" else np.array(values).reshape(output["shape"])
        tensors[output["name"]] = shaped
    assert rest == b""
    return document, tensors


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
def test_scores_are_those_of_the_json_route(running, body, binary, binary_output):
    wanted = running.rank(body).json()
    response = infer(running, body, binary=binary, parameters={"user_id": "u1", "binary_data_output": binary_output})
    document, tensors = read(response)
    assert (HEADER in response.headers) == binary_output
    assert (document["model_name"], document["model_version"], document["id"]) == ("tiny", "1", "r-1")
    assert document["parameters"]["config_version"] == wanted["config_version"]
    assert tensors["id"] == [item["id"] for item in wanted["items"]]
    assert tensors["score"].tolist() == [item["score"] for item in wanted["items"]]
    for index, task in enumerate(("click", "like", "hate")):
        assert (tensors["p"][:, index].astype("f4") == np.array([i["p"][task] for i in wanted["items"]], "f4")).all()


def test_outputs_are_those_that_are_asked_for(running, body):
    outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "id"}]
    document, tensors = read(infer(running, body, binary=True, outputs=outputs, parameters={"top_k": 2}))
    assert [output["name"] for output in document["outputs"]] == ["score", "id"]
    assert len(tensors["id"]) == len(tensors["score"]) == 2
    response = infer(running, body, binary=False, outputs=[{"name": "scores"}])
    assert (response.status_code, "no such output" in response.json()["error"]) == (422, True)


def test_health_and_metadata(running):
    assert [running.get(f"/v2{p}").status_code for p in ("", "/health/live", "/health/ready")] == [200] * 3
    assert running.get("/v2/models/tiny/ready").status_code == 200
    assert running.get("/v2/models/tiny/versions/1/ready").status_code == 200
    for path in ("/v2/models/other/ready", "/v2/models/tiny/versions/2/ready", "/v2/models/other"):
        assert (running.get(path).status_code, bool(running.get(path).json()["error"])) == (404, True)
    metadata = running.get("/v2/models/tiny").json()
    inputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["inputs"]}
    assert inputs["candidates.features.quality"] == ("FP64", [-1])
    assert inputs["candidates.features.tags.lengths"] == ("INT64", [-1])
    assert inputs["user.features.activity"] == ("BYTES", [1])
    assert {"id", "score", "p", "p_up", "p_joint"} == {entry["name"] for entry in metadata["outputs"]}


def put(index: int, **values: Any):
    return lambda document: document["inputs"][index].update(values)


BAD = {
    "no ids": (False, lambda d: d["inputs"].pop(0), "input 'candidates.id'"),
    "unknown input": (False, put(2, name="author"), "input 'author'"),
    "unknown feature": (False, put(2, name="candidates.features.autor"), "candidates: feature 'autor'"),
    "twice": (False, put(2, name="candidates.id"), "input 'candidates.id'"),
    "another shape": (False, put(2, shape=[4]), "input 'candidates.features.author'"),
    "two dimensions": (False, put(2, shape=[5, 1]), "input 'candidates.features.author'"),
    "negative shape": (False, put(2, shape=[-1]), "$.inputs[2].shape[0]"),
    "unknown datatype": (False, put(2, datatype="INT65"), "input 'candidates.features.author'"),
    "texts for numbers": (False, put(2, data=["1"] * 5), "input 'candidates.features.author'"),
    "beyond its type": (False, put(2, datatype="INT8", data=[300] * 5), "input 'candidates.features.author'"),
    "numbers for ids": (False, put(0, datatype="INT64", data=[1, 2, 3, 4, 5]), "input 'candidates.id'"),
    "wrong lengths": (False, put(5, data=[2, 2, 2, 2, 1]), "input 'candidates.features.tags.lengths'"),
    "negative lengths": (False, put(5, data=[2, 2, 2, 6, -2]), "input 'candidates.features.tags.lengths'"),
    "two users": (False, put(7, shape=[2], data=[1.0, 2.0]), "input of 'age'"),
    "top_k a text": (False, lambda d: d["parameters"].update(top_k="2"), "$.parameters"),
    "more bytes than there are": (True, put(8, parameters={"binary_data_size": 800}), "input 'context.hour'"),
    "fewer bytes than sent": (True, lambda d: d["inputs"].pop(), "body"),
    "negative size": (True, put(8, parameters={"binary_data_size": -8}), "input 'context.hour'"),
    "size and data": (True, put(8, data=[1]), "input 'context.hour'"),
    "texts cut off": (True, put(0, parameters={"binary_data_size": 29}), "input 'candidates.id'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_name_the_place(running, body, case):
    binary, change, place = BAD[case]
    response = infer(running, body, binary=binary, change=change)
    assert response.status_code == 422, response.text
    assert place in response.json()["thing"]
    assert response.json()["error"] == response.json()["detail"]


@pytest.mark.parametrize(("length", "status"), [("x", 400), ("-1", 400), ("999999", 422), ("3", 422)])
def test_a_bad_header_length_is_refused(running, length, status):
    response = running.client.post(
        f"{running.url}/v2/models/tiny/infer", content=b'{"inputs": []}', headers={HEADER: length}
    )
    assert response.status_code == status


def test_unknown_models_and_versions_are_404(running, body):
    for path in ("other", "tiny/versions/2"):
        assert infer(running, body, binary=False, path=path).status_code == 404
    assert infer(running, body, binary=False, path="tiny/versions/1").status_code == 200


STOCK_CLIENT = """
import sys, numpy as np, tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert {o["name"] for o in client.get_model_metadata("tiny")["outputs"]} >= {"id", "score", "p"}
def tensor(name, array, datatype):
    made = http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made
inputs = [
    tensor("candidates.id", np.array([b"a", b"b", b"c"], dtype=np.object_), "BYTES"),
    tensor("candidates.features.quality", np.array([0.1, 0.2, 0.3]), "FP64"),
    tensor("user.features.age", np.array([30.0]), "FP64"),
]
result = client.infer("tiny", inputs, request_compression_algorithm="gzip")
assert sorted(result.as_numpy("id").tolist()) == [b"a", b"b", b"c"]
assert (np.diff(result.as_numpy("score")) <= 0).all() and result.as_numpy("p").shape == (3, 3)
some = client.infer("tiny", inputs, outputs=[http.InferRequestedOutput("id", binary_data=False)])
assert sorted(some.as_numpy("id").tolist()) == ["a", "b", "c"]
try:
    client.infer("other", inputs)
except http.InferenceServerException as exc:
    assert "other" in str(exc)
print("served")
"""


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient is not installed")
def test_a_stock_tritonclient_works_unchanged(running):
    address = running.url.removeprefix("http://")
    done = subprocess.run([sys.executable, "-c", STOCK_CLIENT, address], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
