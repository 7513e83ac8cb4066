"""Item vectors: the same in every encoding, refused when they do not fit, and heeded by diversity rules."""

from __future__ import annotations

import json
import time

import numpy as np
import orjson
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from service.admission import Deadline
from service.errors import BodyMalformed
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving
from service.wire import arrow
from service.wire.encodings import parse_json

VECTORS = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]


def rows(vectors):
    candidates = [{"id": f"c{row}"} | ({} if v is None else {"vector": v}) for row, v in enumerate(vectors)]
    return orjson.dumps({"user": {"id": "u"}, "candidates": candidates})


def columns(vectors):
    return orjson.dumps({"candidates": {"id": [f"c{row}" for row in range(len(vectors))], "vector": vectors}})


def stream(vectors, kind=None):
    arrays = [pa.array([f"c{row}" for row in range(len(vectors))]), pa.array(vectors, kind or pa.list_(pa.float64()))]
    batch = pa.record_batch(arrays, names=["id", "vector"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("parse", "body"), [(parse_json, rows), (parse_json, columns), (arrow.parse, stream)])
def test_every_encoding_gives_the_same_vectors(parse, body):
    np.testing.assert_array_equal(parse(body(VECTORS), 100, "r").vectors_ND, VECTORS)


def test_without_vectors_there_are_none():
    assert parse_json(rows([None, None]), 100, "r").vectors_ND is None


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (parse_json, rows([[1.0], None]), r"candidates\[1\].vector: got none, want 1"),
        (parse_json, rows([[1.0], [1.0, 2.0]]), r"candidates\[1\].vector: got 2 numbers, want 1"),
        (parse_json, rows([[]]), "vector"),
        (parse_json, rows([["a"]]), "vector"),
        (parse_json, b'{"candidates": {"id": ["a", "b"], "vector": [[1.0]]}}', "vector: got 1 values, want 2"),
        (arrow.parse, stream([[float("nan")]]), r"candidates\[0\].vector: got NaN"),
        (arrow.parse, stream([[1.0], None]), r"candidates\[1\].vector: got none"),
        (arrow.parse, stream(["a"], pa.string()), "column 'vector': got string"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_with_their_place(parse, body, message):
    with pytest.raises(BodyMalformed, match=message):
        parse(body, 100, "r")


@pytest.mark.parametrize("rule", ["mmr", "dpp"])
def test_a_diversity_rule_moves_near_copies_apart(rule, models_folder, tmp_path, body):
    fusion = tmp_path / "fusion.yaml"
    document = {
        "format": 1,
        "default": "feed",
        "policies": {"feed": {"formula": "weighted_sum", "weights": {"click": 1.0}, "rules": []}},
    }

    def order(rules, with_vectors):
        document["policies"]["feed"]["rules"] = rules
        fusion.write_text(json.dumps(document))
        serving = Serving()
        metrics = Metrics(CollectorRegistry())
        Reloader(Settings(models=models_folder, fusion=fusion), metrics, serving).load()
        request = parse_json(orjson.dumps(with_vectors), 100, "r")
        ranking = Ranker(metrics).rank(request, serving.choose(None), Deadline(time.monotonic() + 1e6, 1))
        return [request.ids[row] for row in ranking.ranked.order_K.tolist()]

    plain = order([], body)
    first, second = plain[:2]
    copies = {first: [1.0, 0.0], second: [1.0, 1e-3]}
    candidates = [{**c, "vector": copies.get(c["id"], [0.0, 1.0])} for c in body["candidates"]]
    diverse = order(
        [{"type": rule, "relevance": 0.05, "depth": len(plain), "pool": len(plain)}], {**body, "candidates": candidates}
    )
    assert sorted(diverse) == sorted(plain)
    assert diverse[0] == first
    assert diverse[1] != second
