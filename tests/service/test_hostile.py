"""A corpus of hostile bodies over all encodings: each is refused with a problem document, none costs memory."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.service.arrow_bombs import BOMBS as ARROW_BOMBS

JSON, ARROW, INFER = "application/json", "application/vnd.apache.arrow.stream", "/v2/models/tiny/infer"
LIMIT_BYTES = 1 << 20
MAY_GROW_BYTES = 96 << 20
DEEP = 100_000
HUGE_INT = "1" + "0" * 5000


@pytest.fixture(scope="module")
def service(tmp_path_factory, models_folder, fusion_file, start_service) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("hostile")
    started = start_service(
        folder, models_folder, fusion_file, DLEN_MAX_BODY_BYTES=str(LIMIT_BYTES), DLEN_MAX_CANDIDATES="100",
        DLEN_DRAIN_SECONDS="0", DLEN_DEADLINE_MS="30000",
    )  # fmt: skip
    yield started
    started.stop()


def arrow(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def one(quality: str = "1", candidate: str = '"a"', head: str = "") -> bytes:
    """A rank request of one candidate, with these texts put in."""
    return f'{{{head}"candidates": [{{"id": {candidate}, "features": {{"quality": {quality}}}}}]}}'.encode()


def infer(data: str, datatype: str = "FP64", shape: str = "[1]", more: str = "") -> bytes:
    ids = '{"name": "candidates.id", "datatype": "BYTES", "shape": [1], "data": ["a"]}'
    quality = f'{{"name": "candidates.features.quality", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}'
    return f'{{"inputs": [{ids}, {quality}]{more}}}'.encode()


GOOD_ARROW = arrow(pa.table({"id": ["a", "b"], "features.quality": [1.0, 2.0]}))
ROWS = {
    "deep arrays": b'{"candidates": ' + b"[" * DEEP,
    "deep objects": b'{"context": ' + b'{"a": ' * DEEP,
    "deep arrays, closed": one("[" * DEEP + "]" * DEEP),
    "huge integer": one(HUGE_INT),
    "huge integer id": one(candidate=HUGE_INT),
    "huge exponent": one("1e99999"),
    "huge negative exponent of an integer": one(head=f'"top_k": -{HUGE_INT}, '),
    "NaN": one("NaN"),
    "-Infinity": one("-Infinity"),
    "hexadecimal": one("0x10"),
    "leading zeros": one("0001"),
    "UTF-16": one().decode().encode("utf-16"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + one(),
    "Latin-1": '{"candidates": [], "request_id": "é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"candidates": [], "request_id": "\xc0\xaf"}',
    "UTF-8 surrogates": b'{"candidates": [], "request_id": "\xed\xa0\x80"}',
    "a lone surrogate escape": one(candidate='"\\ud800"'),
    "surrogate escapes the wrong way round": one(candidate='"\\udc00\\ud800"'),
    "a NUL in a number": one("1\x002"),
    "a raw newline in a text": one(candidate='"a\nb"'),
    "a text of 900 KB as id": one(candidate='"' + "x" * 900_000 + '"'),
    "a key of 900 KB": b'{"' + b"k" * 900_000 + b'": 1, "candidates": []}',
    "100,000 candidates": json.dumps({"candidates": [{"id": str(i)} for i in range(50_000)]}).encode(),
    "50,000 features of one candidate": json.dumps(
        {"candidates": [{"id": "a", "features": {f"f{i}": 1 for i in range(50_000)}}]}
    ).encode(),
    "two documents": one() + one(),
    "a comment": b"/* hi */" + one(),
    "a trailing comma": one()[:-1] + b",}",
    "nothing but blanks": b" " * 900_000,
    "nothing but zeros": bytes(900_000),
    "columns of different lengths": b'{"candidates": {"id": ["a", "b"], "features": {"quality": [1]}}}',
    "columns of the same id": b'{"candidates": {"id": ["a", "a"]}}',
    "columns of huge integers": f'{{"candidates": {{"id": ["a"], "features": {{"author": [{HUGE_INT}]}}}}}}'.encode(),
    "columns of NaN": b'{"candidates": {"id": ["a"], "features": {"quality": [NaN]}}}',
    "vectors of different lengths": b'{"candidates": [{"id": "a", "vector": [1]}, {"id": "b", "vector": [1, 2]}]}',
    "a vector beyond float64": b'{"candidates": [{"id": "a", "vector": [1e999]}]}',
    "Arrow called JSON": GOOD_ARROW,
}
ARROWS = {
    "JSON called Arrow": one(),
    "cut": GOOD_ARROW[:-30],
    "cut in the schema": GOOD_ARROW[:40],
    "a length beyond the body": b"\xff\xff\xff\xff" + struct.pack("<i", 2**31 - 1) + GOOD_ARROW[8:],
    "a negative length": b"\xff\xff\xff\xff" + struct.pack("<i", -5) + GOOD_ARROW[8:],
    "noise": bytes(range(256)) * 1000,
    "a billion nulls": arrow(pa.table({"id": pa.nulls(10**9)})),
    "no columns": arrow(pa.table({})),
    "a null id": arrow(pa.table({"id": ["a", None]})),
    "NaN": arrow(pa.table({"id": ["a"], "features.quality": [float("nan")]})),
    "compressed buffers": arrow(pa.table({"id": ["a" * 9999]}), compression="zstd"),
    "a head that is no JSON": arrow(pa.table({"id": ["a"]}).replace_schema_metadata({"dlen": "[" * DEEP})),
    "a file, not a stream": b"ARROW1\x00\x00" + GOOD_ARROW,
    "5,000 columns": arrow(pa.table({f"features.f{i}": [1] for i in range(1500)} | {"id": ["a"]})),
    **ARROW_BOMBS,
}
INFERS = {
    "deep data": infer("[" * DEEP),
    "NaN": infer("[NaN]"),
    "huge integer": infer(f"[{HUGE_INT}]", "INT64"),
    "a shape beyond all memory": infer("[1]", shape="[9223372036854775807]"),
    "a negative shape": infer("[1]", shape="[-1]"),
    "a shape of many dimensions": infer("[1]", shape="[1" + ",1" * 10_000 + "]"),
    "an unknown datatype": infer("[1]", "FP8"),
    "other data than the datatype": infer('["a"]'),
    "a binary size beyond the body": infer("null").replace(
        b'"data": null', b'"parameters": {"binary_data_size": 9223372036854775807}'
    ),
    "the input again": infer("[1]").replace(b"candidates.features.quality", b"candidates.id"),
    "parameters of other types": infer("[1]", more=', "parameters": {"top_k": [], "explain": {}}'),
    "no JSON": b"\x00\x01",
}
BOMBS = {
    "gzip of 500 MB": ("gzip", gzip.compress(bytes(500_000_000), 1)),
    "zstd of 500 MB": ("zstd", zstd(bytes(500_000_000))),
    "gzip in gzip": ("gzip", gzip.compress(gzip.compress(bytes(10_000_000)))),
    "cut gzip": ("gzip", gzip.compress(one())[:-4]),
    "gzip with a tail": ("gzip", gzip.compress(one()) + b"tail"),
    "gzip members without end": ("gzip", gzip.compress(one()) * 3000),
    "no gzip": ("gzip", one()),
    "no zstd": ("zstd", one()),
    "cut zstd": ("zstd", zstd(one())[:-4]),
    "an encoding of encodings": ("gzip, gzip", gzip.compress(one())),
}
CASES = [
    *[pytest.param("/v1/rank", {"content-type": JSON}, data, id=f"json: {name}") for name, data in ROWS.items()],
    *[pytest.param("/v1/rank", {"content-type": ARROW}, data, id=f"arrow: {name}") for name, data in ARROWS.items()],
    *[pytest.param(INFER, {"content-type": JSON}, data, id=f"v2: {name}") for name, data in INFERS.items()],
    *[pytest.param(path, {"content-type": JSON, "content-encoding": how}, data, id=f"{path[:3]} {name}")
      for name, (how, data) in BOMBS.items() for path in ("/v1/rank", INFER)],
    *[pytest.param(path, {"content-type": kind}, b"x" * 10_000_000, id=f"{kind} of 10 MB to {path[:3]}")
      for path in ("/v1/rank", INFER) for kind in (JSON, ARROW) if (path, kind) != (INFER, ARROW)],
    *[pytest.param(INFER, {"inference-header-content-length": text}, infer("[1]"), id=f"v2: {text}")
      for text in ("9" * 11, "-1", "1e3")],
]  # fmt: skip


def grown_bytes(pid: int) -> int:
    """The most memory that a process ever held."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


@pytest.mark.parametrize(("path", "headers", "data"), CASES)
def test_a_hostile_body_is_refused_with_a_problem_document_and_costs_no_memory(service, path, headers, data):
    before = grown_bytes(service.process.pid)
    answer = service.client.post(service.url + path, content=data, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text[:300]
    document = answer.json()
    assert (answer.headers["content-type"], document["status"]) == ("application/problem+json", answer.status_code)
    assert document["type"].startswith("urn:dlen:problem:") and len(answer.content) < 4000
    assert grown_bytes(service.process.pid) - before < MAY_GROW_BYTES
    assert service.rank(one()).status_code == 200


@pytest.mark.parametrize(
    "data",
    [one(head='"top_k": 1, "top_k": 0, '), one(quality="1.0000000000000000000000000000000001"),
     one(candidate='"\\u0000\\ud83d\\ude00"'), one(head=f'"top_k": {HUGE_INT}, ')],
    ids=["a key twice: the last holds", "more digits than float64", "NUL and an emoji", "top_k beyond 64 bits"],
)  # fmt: skip
def test_what_is_strange_but_right_is_answered(service, data):
    assert service.rank(data).status_code in (200, 422)


@pytest.mark.parametrize(
    "sent",
    [
        b"5\r\nhello\r\n",
        b"ffffffffffffffff\r\nx",
        b"-1\r\nx\r\n",
        b"zz\r\n",
        b"5\r\nhello-and-more\r\n0\r\n\r\n",
        b"0\r\n",
    ],
)
def test_a_chunked_body_that_is_cut_or_wrong_leaves_the_service_well(service, sent):
    host, port = service.url.removeprefix("http://").split(":")
    head = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        opened.sendall(head + sent)
        opened.shutdown(socket.SHUT_WR)
        told = opened.recv(4096)
    assert not told or told.startswith((b"HTTP/1.1 4",))
    assert service.rank(one()).status_code == 200
    assert service.metric("dlen_rank_in_flight") == 0
