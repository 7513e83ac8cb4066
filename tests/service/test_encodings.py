"""Every encoding of a request gives the same bytes of answer, and refuses what is wrong with it."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
import zlib
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from service.admission import Deadline
from service.engine import Predicted
from service.errors import BodyMalformed, BodyTooLarge, MediaTypeUnsupported, RequestRefused
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving, Snapshot
from service.wire import arrow
from service.wire.encodings import ENCODINGS, JSON, encoding_of_answer, encoding_of_body, parse_json
from service.wire.inflate import inflate

ARROW = ENCODINGS[arrow.MEDIA_TYPE]
FAR = Deadline(time.monotonic() + 1e6, 1)
TYPES = {"author": pa.int64(), "quality": pa.float64(), "tags": pa.list_(pa.string())}


@pytest.fixture(scope="module")
def snapshot(models_folder, fusion_file) -> Snapshot:
    values = Settings(models=models_folder, fusion=fusion_file)
    serving = Serving()
    Reloader(values, Metrics(CollectorRegistry()), serving).load()
    return serving.choose(None)


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return Ranker(Metrics(CollectorRegistry()))


def columnar(body: dict[str, Any]) -> dict[str, Any]:
    rows = body["candidates"]
    names = dict.fromkeys(name for row in rows for name in row.get("features", {}))
    columns: dict[str, Any] = {"id": [row["id"] for row in rows]}
    columns["features"] = {name: [row.get("features", {}).get(name) for row in rows] for name in names}
    if any("group" in row for row in rows):
        columns["group"] = [row.get("group") for row in rows]
    return {**body, "candidates": columns}


def to_arrow(body: dict[str, Any], *, batches: int = 1, dictionary: bool = False, **options: Any) -> bytes:
    columns = columnar(body)["candidates"]
    arrays = {"id": pa.array(columns["id"], pa.string())}
    if "group" in columns:
        arrays["group"] = pa.array(columns["group"], pa.string())
    for name, values in columns["features"].items():
        arrays[f"features.{name}"] = pa.array(values, TYPES[name])
    if dictionary:
        arrays = {
            name: array if pa.types.is_list(array.type) else array.dictionary_encode() for name, array in arrays.items()
        }
    head = {key: value for key, value in body.items() if key != "candidates"}
    table = pa.table(arrays).replace_schema_metadata({"dlen": json.dumps(head)})
    return stream(table, max(1, -(-len(columns["id"]) // batches)), **options)


def stream(table: pa.Table, rows: int | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


maybe = st.one_of
author = maybe(st.none(), st.integers(-(2**63), 2**63 - 1))
quality = maybe(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-100, 100))
tags = maybe(st.none(), st.lists(st.text(max_size=5).filter(str.isprintable), max_size=5))
features = st.fixed_dictionaries({}, optional={"author": author, "quality": quality, "tags": tags})
requests = st.builds(
    lambda rows, groups, user, context, top_k: {
        "request_id": "r",
        "user": {"id": "u", "features": user},
        "context": context,
        "candidates": [
            {"id": f"c{i}", "features": row, **({"group": f"g{i % 3}"} if groups else {})} for i, row in enumerate(rows)
        ],
        "top_k": top_k,
    },
    st.lists(features, max_size=8),
    st.booleans(),
    st.fixed_dictionaries(
        {}, optional={"age": maybe(st.none(), st.floats(-1e9, 1e9)), "activity": maybe(st.none(), st.text(max_size=6))}
    ),
    st.fixed_dictionaries({}, optional={"hour": maybe(st.none(), st.integers(0, 23))}),
    maybe(st.none(), st.integers(0, 9)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests)
def test_all_encodings_of_a_request_are_answered_with_the_same_bytes(snapshot, ranker, body):
    text = json.dumps(body).encode()

    def answer(encoding: Any, data: bytes) -> bytes:
        return ENCODINGS[JSON].answer(ranker.rank(encoding.parse(data, 100, "x"), snapshot, FAR))

    rows = answer(ENCODINGS[JSON], text)
    typed = parse_json(text, 100, "x", snapshot.model.typed_json)
    assert ENCODINGS[JSON].answer(ranker.rank(typed, snapshot, FAR)) == rows
    assert answer(ENCODINGS[JSON], json.dumps(columnar(body)).encode()) == rows
    assert answer(ARROW, to_arrow(body)) == rows
    assert answer(ARROW, to_arrow(body, batches=3, dictionary=True)) == rows
    assert inflate(gzip.compress(text), "gzip", 10**6) == inflate(zstd(text), "zstd", 10**6) == text


@pytest.mark.parametrize("model", ["whole", "no latent", "no model"])
@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("top_k", [None, 60])
def test_compiled_loops_answer_what_is_answered_without(
    snapshot, ranker, make_body, monkeypatch, json_loops, arrow_loops, model, top_k, explain
):
    body = {**make_body(60 if top_k is None else 80), "top_k": top_k, "explain": explain}
    ranking = ranker.rank(parse_json(json.dumps(body).encode(), 100, "x"), snapshot, FAR)
    predicted = None if model == "no model" else ranking.predicted
    if model == "no latent":
        predicted = Predicted(predicted.p_NT, None, None)
    ranking = replace(ranking, predicted=predicted)
    many = json.loads(ENCODINGS[JSON].answer(ranking))
    monkeypatch.setattr("service.wire.loops.json", None)
    few = json.loads(ENCODINGS[JSON].answer(ranking))
    for found, wanted in zip(many["items"], few["items"], strict=True):
        assert found.keys() == wanted.keys()
        assert (found["id"], found["score"]) == (wanted["id"], wanted["score"])
        assert found.get("explanation") == wanted.get("explanation")
        for key in wanted.keys() - {"id", "score", "explanation"}:
            assert as_float32(found[key]) == as_float32(wanted[key])
    assert {**many, "items": []} == {**few, "items": []}


def as_float32(value: Any) -> Any:
    """The value with each number as a float32."""
    return {key: np.float32(inner) for key, inner in value.items()} if isinstance(value, dict) else np.float32(value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests, st.booleans())
def test_the_arrow_answer_says_what_the_json_answer_says(snapshot, ranker, body, explain):
    ranking = ranker.rank(parse_json(json.dumps({**body, "explain": explain}).encode(), 100, "x"), snapshot, FAR)
    wanted = json.loads(ENCODINGS[JSON].answer(ranking))
    written = ARROW.answer(ranking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.wire.loops.arrow", None)
        assert ARROW.answer(ranking) == written
    with pa.ipc.open_stream(written) as reader:
        table = reader.read_all()
    table.validate(full=True)
    for batch in table.to_batches():
        assert written.endswith(batch.serialize().to_pybytes() + b"\xff\xff\xff\xff\0\0\0\0")
    assert pl.read_ipc_stream(io.BytesIO(written), use_pyarrow=False).equals(pl.from_arrow(table))
    head = json.loads(table.schema.metadata[b"dlen"])
    assert {**head, "items": wanted["items"]} == wanted
    assert table["id"].to_pylist() == [item["id"] for item in wanted["items"]]
    assert table["score"].to_pylist() == [item["score"] for item in wanted["items"]]
    for task in ("click", "like", "hate"):
        for kind in ("p", "p_joint"):
            found = table[f"{kind}.{task}"].to_numpy()
            assert (found == np.array([item[kind][task] for item in wanted["items"]], np.float32)).all()
    if explain:
        found = [json.loads(text) for text in table["explanation"].to_pylist()]
        assert found == [item["explanation"] for item in wanted["items"]]


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize("taken", [JSON, arrow.MEDIA_TYPE])
@pytest.mark.parametrize("given_type", [JSON, arrow.MEDIA_TYPE])
@pytest.mark.parametrize("compress", ["identity", "gzip", "zstd"])
def test_encodings_over_http(running, body, taken, given_type, compress):
    plain = running.rank(body).json()
    data = json.dumps(body).encode() if taken == JSON else to_arrow(body)
    data = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd}[compress](data)
    headers = {"content-type": taken, "accept": given_type, "content-encoding": compress}
    response = running.client.post(f"{running.url}/v1/rank", content=data, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, given_type)
    if given_type == JSON:
        assert response.json() == plain
    else:
        with pa.ipc.open_stream(response.content) as reader:
            assert reader.read_all()["score"].to_pylist() == [item["score"] for item in plain["items"]]


def test_media_types_are_chosen_by_headers():
    assert encoding_of_body(None).label == encoding_of_body("Application/JSON; charset=utf-8").label == "json"
    assert encoding_of_body(arrow.MEDIA_TYPE).label == "arrow"
    with pytest.raises(MediaTypeUnsupported):
        encoding_of_body("text/plain")
    for accept, label in (
        (None, "json"), ("*/*", "json"), (f"{arrow.MEDIA_TYPE}, application/json", "arrow"),
        (f"application/json, {arrow.MEDIA_TYPE}", "json"), (f"{arrow.MEDIA_TYPE};q=0", "json"),
    ):  # fmt: skip
        assert encoding_of_answer(accept).label == label


BAD_COLUMNS: dict[str, tuple[Any, str]] = {
    "another length": (lambda c: c["features"]["quality"].pop(), "$.candidates.features.quality"),
    "another length of groups": (lambda c: c["group"].append("x"), "$.candidates.group"),
    "no ids": (lambda c: c.pop("id"), "$.candidates"),
    "no list": (lambda c: c["features"].update(quality=1), "$.candidates.features[...]"),
    "unknown key": (lambda c: c.update(ids=[]), "$.candidates"),
    "the same id": (lambda c: c["id"].__setitem__(1, "c0"), "candidates[1].id"),
    "unknown feature": (lambda c: c["features"].update(autor=[1] * 5), "candidates: feature 'autor'"),
    "a text for a number": (lambda c: c["features"].update(quality=["a"] * 5), "candidates: feature 'quality' row 0"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columnar_json_names_the_place(snapshot, ranker, body, case):
    spoil, place = BAD_COLUMNS[case]
    document = columnar(body)
    spoil(document["candidates"])
    with pytest.raises(RequestRefused) as caught:
        ranker.rank(parse_json(json.dumps(document).encode(), 100, "x"), snapshot, FAR)
    assert caught.value.status == 422
    assert place in caught.value.thing


def table_of(**columns: Any) -> bytes:
    return stream(pa.table(columns))


BAD_ARROW: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "body"),
    "json": (b'{"candidates": []}', "body"),
    "no ids": (table_of(group=["a"]), "column 'id'"),
    "null id": (table_of(id=pa.array(["a", None])), "candidates[1].id"),
    "number ids": (table_of(id=[1, 2]), "column 'id'"),
    "the same id": (table_of(id=["a", "a"]), "candidates[1].id"),
    "unknown column": (table_of(id=["a"], score=[1.0]), "column 'score'"),
    "a column twice": (stream(pa.table([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])), "column 'id'"),
    "unknown feature": (table_of(id=["a"], **{"features.autor": [1]}), "candidates: feature 'autor'"),
    "floats for integers": (table_of(id=["a"], **{"features.author": [1.5]}), "candidates: feature 'author'"),
    "NaN": (table_of(id=["a"], **{"features.quality": [float("nan")]}), "candidates: feature 'quality' row 0"),
    "infinity": (table_of(id=["a"], **{"features.quality": [float("inf")]}), "candidates: feature 'quality' row 0"),
    "booleans": (table_of(id=["a"], **{"features.quality": [True]}), "column 'features.quality'"),
    "null in a list": (table_of(id=["a"], **{"features.tags": [["x", None]]}), "column 'features.tags'"),
    "lists of lists": (table_of(id=["a"], **{"features.tags": [[["x"]]]}), "column 'features.tags'"),
    "times": (table_of(id=["a"], **{"features.quality": pa.array([0], pa.timestamp("s"))}), "column"),
    "uint64": (table_of(id=["a"], **{"features.author": pa.array([2**64 - 1], pa.uint64())}), "column"),
    "too many rows": (table_of(id=[str(i) for i in range(101)]), "candidates"),
    "many rows of nothing": (stream(pa.table({"id": pa.nulls(10**9)})), "candidates"),
    "compressed buffers": (stream(pa.table({"id": ["a" * 9999]}), compression="zstd"), "body"),
    "bad head": (stream(pa.table({"id": ["a"]}).replace_schema_metadata({"dlen": "{"})), "schema metadata 'dlen'"),
    "unknown key": (stream(pa.table({"id": ["a"]}).replace_schema_metadata({"dlen": '{"k": 1}'})), "$"),
}


@pytest.mark.parametrize("case", BAD_ARROW)
def test_bad_arrow_names_the_place(snapshot, ranker, case):
    data, place = BAD_ARROW[case]
    with pytest.raises(RequestRefused) as caught:
        ranker.rank(arrow.parse(data, 100, "x"), snapshot, FAR)
    assert caught.value.status == 422
    assert place in caught.value.thing
    assert "\n" not in str(caught.value)


def test_arrow_streams_cut_or_flipped_anywhere_are_read_or_refused_and_never_more(snapshot, ranker, body):
    whole = to_arrow(body, dictionary=True)
    rng = random.Random(5)
    tried = refused = 0
    for _ in range(600):
        data = bytearray(whole)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        tried += 1
        try:
            ranker.rank(arrow.parse(bytes(data), 100, "x"), snapshot, FAR)
        except RequestRefused:
            refused += 1
    assert 100 < refused < tried


def test_bodies_inflate_to_the_limit_and_not_beyond():
    data = b"x" * 1000
    for encoding, compress in (("gzip", gzip.compress), ("zstd", zstd)):
        assert inflate(compress(data), encoding, 1000) == data
        with pytest.raises(BodyTooLarge):
            inflate(compress(data), encoding, 999)
        bomb = compress(bytes(50_000_000))
        assert len(bomb) < 100_000
        with pytest.raises(BodyTooLarge):
            inflate(bomb, encoding, 1000)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_broken_streams_are_refused(encoding):
    good = {"gzip": gzip.compress, "zstd": zstd}[encoding](b"hello" * 100)
    for bad in (b"", b"hello", good[:-1], good[: len(good) // 2], good + b"tail", b"\x1f\x8b" + good):
        with pytest.raises(BodyMalformed):
            inflate(bad, encoding, 10_000)
    with pytest.raises(MediaTypeUnsupported):
        inflate(zlib.compress(b"x"), "deflate", 100)
