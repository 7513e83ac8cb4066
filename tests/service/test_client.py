from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from service.client import AsyncClient, Client
from service.errors import ServerRefused, ServerUnreachable


def arguments(body: dict[str, Any]) -> tuple[list[str], dict[str, list[Any]], dict[str, Any]]:
    rows = body["candidates"]
    names = ("author", "quality", "tags")
    features = {name: [row["features"][name] for row in rows] for name in names}
    more = {
        "user_id": "u1", "user": body["user"]["features"], "context": body["context"], "request_id": "r-1",
        "groups": [row["group"] for row in rows],
    }  # fmt: skip
    return [row["id"] for row in rows], features, more


@pytest.mark.parametrize("wire", ["json", "arrow"])
@pytest.mark.parametrize("explain", [False, True])
def test_both_encodings_and_both_clients_give_the_same_answer(running, body, wire, explain):
    wanted = running.rank({**body, "explain": explain}).json()
    ids, features, more = arguments(body)
    with Client(running.url, wire=wire) as client:
        answer = client.rank(ids, features, explain=explain, **more)

    async def ask() -> Any:
        async with AsyncClient(running.url + "/", wire=wire) as other:
            return await other.rank(ids, features, explain=explain, **more)

    assert asyncio.run(ask()) == answer
    assert (answer.model, answer.model_version, answer.request_id) == ("tiny", "1", "r-1")
    assert answer.config_version == wanted["config_version"]
    assert [item.id for item in answer.items] == [item["id"] for item in wanted["items"]]
    assert [item.score for item in answer.items] == [item["score"] for item in wanted["items"]]
    assert [item.explanation for item in answer.items] == [item.get("explanation") for item in wanted["items"]]
    for item, other in zip(answer.items, wanted["items"], strict=True):
        assert item.p == pytest.approx(other["p"], rel=1e-6)
        assert item.p_up == pytest.approx(other["p_up"], rel=1e-6)


@pytest.mark.parametrize("wire", ["json", "arrow"])
def test_missing_values_and_few_candidates_are_sent_too(running, wire):
    with Client(running.url, wire=wire) as client:
        answer = client.rank(["a", "b"], {"author": [None, None], "quality": [1, None]}, top_k=1)
        assert (len(answer.items), answer.missing_features) == (1, 8)
        assert client.rank([]).items == []


def test_a_refusal_tells_what_the_service_told(running):
    with Client(running.url) as client, pytest.raises(ServerRefused, match="status 422: .*feature 'autor'"):
        client.rank(["a"], {"autor": [1]})
    with Client(running.url) as client, pytest.raises(ServerRefused, match="status 400"):
        client.rank(["a"], deadline_ms=0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://["])
def test_an_unreachable_service_is_one_error(url):
    with pytest.raises(ServerUnreachable) as caught, Client(url) as client:
        client.rank(["a"])
    assert "\n" not in str(caught.value)

    async def ask() -> None:
        async with AsyncClient(url) as other:
            await other.rank(["a"])

    with pytest.raises(ServerUnreachable):
        asyncio.run(ask())


def test_the_client_loads_neither_models_nor_a_web_framework():
    code = (
        "import sys, json, service.client;"
        "print(json.dumps([m for m in ('onnxruntime', 'fastapi', 'torch', 'pyarrow') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
