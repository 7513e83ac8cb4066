"""Requests that name items by id: what the bundle's item table gives equals what the request could have said."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import polars as pl
import pytest
from prometheus_client import CollectorRegistry

from cli import main
from service.admission import Deadline
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving, Snapshot
from service.wire.encodings import ENCODINGS, JSON

FAR = Deadline(time.monotonic() + 1e6, 1)


@pytest.fixture(scope="module")
def table(prepared, tmp_path_factory) -> Any:
    file = tmp_path_factory.mktemp("items") / "items.parquet"
    assert main(["items", "--data", str(prepared), "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def rows(table) -> list[dict[str, Any]]:
    return pl.read_parquet(table).to_dicts()


@pytest.fixture(scope="module")
def snapshots(trained, table, tmp_path_factory, fusion_file) -> dict[str, Snapshot]:
    """The same network with layer-1 and with packed rows."""
    models = tmp_path_factory.mktemp("models")
    fusion = models / "fusion.yaml"
    fusion.write_text(
        "format: 1\ndefault: feed\nnegative_tasks: []\npolicies:\n  feed:\n    formula: weighted_sum\n"
        "    weights: {click: 1.0}\n"
    )
    for kind in ("layer1", "packed"):
        out = str(models / "bundles" / kind / "1")
        assert main(["export", "--run", str(trained), "--out", out, "--items", str(table), "--item-rows", kind]) == 0
    serving = Serving()
    Reloader(Settings(models=models / "bundles", fusion=fusion), Metrics(CollectorRegistry()), serving).load()
    return dict(serving.snapshots)


def body_of(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    return {"request_id": "r", "user": {"id": "u", "features": {}}, "context": {}, "candidates": candidates}


def inline(row: dict[str, Any]) -> dict[str, Any]:
    features = {name: value for name, value in row.items() if name != "id" and value is not None}
    return {"id": str(row["id"]), "features": features}


class Asked:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.metrics = snapshot, Metrics(CollectorRegistry())

    def __call__(self, candidates: list[dict[str, Any]]) -> Any:
        request = ENCODINGS[JSON].parse(json.dumps(body_of(candidates)).encode(), 5000, "x")
        return Ranker(self.metrics).rank(request, self.snapshot, FAR)

    def counted(self) -> dict[str, float]:
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
