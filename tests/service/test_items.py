"""Requests that name items by id: what the bundle's item table gives equals what the request could have said."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from bundle.errors import GoldenMismatch, ItemRowsMismatch, TensorMismatch
from bundle.files import sha256_of
from bundle.manifest import write_manifest
from bundle.read import read_bundle
from service.admission import Deadline
from service.client import ARROW, message
from service.engine import Engine
from service.errors import FeatureInvalid
from service.metrics import Metrics
from service.openapi import describe
from service.ranker import Ranker
from service.reload import Reloader
from service.routes import rank_routes
from service.settings import Settings
from service.snapshot import Serving, Snapshot
from service.wire.encodings import ENCODINGS, JSON
from service.wire.v2 import Exchange

FAR = Deadline(time.monotonic() + 1e6, 1)


FUSION = """format: 1
default: feed
negative_tasks: []
policies:
  feed: {formula: weighted_sum, weights: {click: 1.0}}
"""


@pytest.fixture(scope="module")
def rows(item_table) -> list[dict[str, Any]]:
    return pl.read_parquet(item_table).to_dicts()


@pytest.fixture(scope="module")
def snapshots(item_models, tmp_path_factory) -> dict[str, Snapshot]:
    """The same network with layer-1 and with packed rows."""
    fusion = tmp_path_factory.mktemp("fusion") / "fusion.yaml"
    fusion.write_text(FUSION)
    serving = Serving()
    Reloader(Settings(models=item_models, fusion=fusion), Metrics(CollectorRegistry()), serving).load()
    return dict(serving.snapshots)


def body_of(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    return {"request_id": "r", "user": {"id": "u", "features": {}}, "context": {}, "candidates": candidates}


def inline(row: dict[str, Any]) -> dict[str, Any]:
    features = {name: value for name, value in row.items() if name != "id" and value is not None}
    return {"id": str(row["id"]), "features": features}


def message_of(candidates: Any) -> bytes:
    return json.dumps({**body_of([]), "request_id": "r", "candidates": candidates}).encode()


class Asked:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.metrics = snapshot, Metrics(CollectorRegistry())

    def __call__(self, candidates: list[dict[str, Any]]) -> Any:
        request = ENCODINGS[JSON].parse(json.dumps(body_of(candidates)).encode(), 5000, "x")
        return Ranker(self.metrics).rank(request, self.snapshot, FAR)

    def counted(self) -> dict[str, float]:
        self.metrics.tallies.settle()
        samples = [s for metric in self.metrics.items.collect() for s in metric.samples]
        return {sample.labels["source"]: sample.value for sample in samples}


@pytest.mark.parametrize("kind", ["layer1", "packed"])
def test_ids_alone_score_as_the_features_of_the_table_do(snapshots, rows, kind):
    ask = Asked(snapshots[kind])
    by_id, by_features = ask([{"id": str(row["id"])} for row in rows]), ask([inline(row) for row in rows])
    np.testing.assert_allclose(by_id.predicted.p_NT, by_features.predicted.p_NT, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_id.predicted.p_up_N, by_features.predicted.p_up_N, rtol=0, atol=1e-5)
    assert by_id.missing_features == by_features.missing_features
    assert ask.counted()["table"] == len(rows)


def test_a_request_may_mix_ids_features_and_strangers(snapshots, rows):
    ask = Asked(snapshots["layer1"])
    names = [name for name in rows[0] if name != "id"]
    changed = {**rows[1], names[0]: rows[5][names[0]]}
    mixed = [
        {"id": str(rows[0]["id"])},  # of the table
        {
            "id": str(rows[1]["id"]),
            "features": {names[0]: changed[names[0]]},
        },  # one feature wins, the rest is the table's
        {"id": "stranger", "features": inline(rows[2])["features"]},
        {"id": "nobody"},
        {"id": str(rows[3]["id"]), "features": dict.fromkeys(names)},  # nothing but nulls: of the table
    ]
    wanted = [
        inline(rows[0]),
        inline(changed),
        {**inline(rows[2]), "id": "stranger"},
        {"id": "nobody"},
        inline(rows[3]),
    ]
    found, expected = ask(mixed), Asked(snapshots["layer1"])(wanted)
    np.testing.assert_allclose(found.predicted.p_NT, expected.predicted.p_NT, rtol=0, atol=1e-5)
    assert found.missing_features == expected.missing_features
    assert ask.counted() == {"table": 2, "mixed": 1, "request": 1, "default": 1}


def test_only_strangers_are_scored_by_their_features_or_defaults(snapshots, rows):
    ask = Asked(snapshots["layer1"])
    both = [{"id": "a", "features": inline(rows[0])["features"]}, {"id": "b"}]
    assert ask(both).predicted.p_NT.shape == (2, 5)
    assert ask.counted() == {"request": 1, "default": 1}
    assert ask([]).predicted.p_NT.shape == (0, 5)


def test_items_with_some_features_each_are_scored_without_any_row(snapshots, rows):
    ask = Asked(snapshots["layer1"])
    names = [name for name in rows[0] if name != "id"]
    some = [{"id": str(row["id"]), "features": {names[0]: row[names[0]]}} for row in rows[:9]]
    assert all(row[names[0]] is not None for row in rows[:9])
    found, expected = ask(some), ask([inline(row) for row in rows[:9]])
    np.testing.assert_allclose(found.predicted.p_NT, expected.predicted.p_NT, rtol=0, atol=1e-6)
    assert found.missing_features == expected.missing_features


@pytest.mark.parametrize("wrong", [{"no_such_feature": 1}, {"no_such_feature": None}])
def test_an_unknown_feature_is_refused_with_a_table_too(snapshots, rows, wrong):
    with pytest.raises(FeatureInvalid, match="no_such_feature"):
        Asked(snapshots["layer1"])([{"id": str(rows[0]["id"]), "features": wrong}])


def test_ids_alone_mean_the_same_in_every_encoding(snapshots, rows):
    snapshot, ids = snapshots["layer1"], [str(row["id"]) for row in rows[:20]]
    ranker = Ranker(Metrics(CollectorRegistry()))
    answer = ENCODINGS[JSON].answer
    by_rows = message_of([{"id": item} for item in ids])
    by_columns = message_of({"id": ids})
    wanted = answer(ranker.rank(ENCODINGS[JSON].parse(by_rows, 100, "r"), snapshot, FAR))
    assert answer(ranker.rank(ENCODINGS[JSON].parse(by_columns, 100, "r"), snapshot, FAR)) == wanted
    for wire, encoding in (("json", JSON), ("arrow", ARROW)):
        body = message(ids, wire=wire, request_id="r").body
        assert answer(ranker.rank(ENCODINGS[encoding].parse(body, 100, "r"), snapshot, FAR)) == wanted
    tensors = [{"name": "candidates.id", "shape": [20], "datatype": "BYTES", "data": ids}]
    v2 = json.dumps({"id": "r", "inputs": tensors}).encode()
    assert answer(ranker.rank(Exchange(snapshot.model.name, None).parse(v2, 100, "r"), snapshot, FAR)) == wanted


@pytest.fixture
def folder(item_models, tmp_path):
    """A copy of a bundle with an item table."""
    shutil.copytree(item_models / "layer1" / "1", tmp_path / "1")
    return tmp_path / "1"


def replaced(folder: Path, name: str, data: bytes) -> None:
    """Change a file and let the manifest list it as it now is."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256_of(folder / name), "size_bytes": len(data)}
    write_manifest(folder, json.dumps(manifest).encode())


def test_an_example_of_ids_only_stands_in_the_document_and_can_be_sent(snapshots, item_models):
    snapshot = snapshots["layer1"]
    serving = Serving()
    serving.publish(snapshot)
    app = FastAPI()
    app.include_router(rank_routes(SimpleNamespace(settings=Settings(models=item_models, fusion=item_models))))
    describe(app, serving)
    body = app.openapi()["paths"]["/v1/rank"]["post"]["requestBody"]["content"][JSON]["examples"]["ids"]
    assert body["value"]["candidates"].keys() == {"id"} and "item table" in body["summary"]
    request = ENCODINGS[JSON].parse(json.dumps(body["value"]).encode(), 10, "x")
    asked = Asked(snapshot)
    Ranker(asked.metrics).rank(request, snapshot, FAR)
    assert asked.counted() == {"table": 2}


def test_a_table_made_by_another_model_never_serves(folder):
    rows = np.load(folder / "items.rows.npy")
    rows[:] += 0.01
    buffer = io.BytesIO()
    np.save(buffer, rows)
    replaced(folder, "items.rows.npy", buffer.getvalue())
    with pytest.raises(ItemRowsMismatch, match=r"item table: got rows off by 0\.01"):
        Engine(read_bundle(folder))


def test_a_ranking_graph_that_gives_other_scores_never_serves(folder):
    golden = dict(np.load(folder / "items.golden.npz"))
    golden["output.p"] += np.float32(1e-3)
    buffer = io.BytesIO()
    np.savez(buffer, **golden)
    replaced(folder, "items.golden.npz", buffer.getvalue())
    with pytest.raises(GoldenMismatch, match="'p'"):
        Engine(read_bundle(folder))


@pytest.mark.parametrize("name", ["rank_rows.onnx", "item_rows.onnx"])
def test_a_graph_of_other_tensors_or_none_never_serves(folder, name):
    for data in (b"no graph", (folder / "model.onnx").read_bytes()):
        replaced(folder, name, data)
        with pytest.raises(TensorMismatch, match=name.replace(".", r"\.")):
            Engine(read_bundle(folder))
