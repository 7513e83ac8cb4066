"""Arrow streams: compiled loops read what pyarrow reads, leave it what they do not know, and stay in bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.columns import Column
from service.errors import BodyMalformed, RequestRefused
from service.wire import arrow
from service.wire.request import RankRequest

pytestmark = pytest.mark.usefixtures("arrow_loops")

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]


def stream(table: pa.Table, rows: int | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


def by_pyarrow(body: bytes) -> RankRequest:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.wire.loops.arrow", None)
        return arrow.parse(body, 100, "x")


def same(one: RankRequest, other: RankRequest) -> None:
    for name in ("request_id", "user_id", "ids", "user", "context", "groups", "model", "top_k", "explain"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.items.keys() == other.items.keys()
    for name, column in one.items.items():
        wanted = other.items[name]
        assert isinstance(column, Column) and isinstance(wanted, Column)
        assert column.values.dtype == wanted.values.dtype, name
        np.testing.assert_array_equal(column.values, wanted.plain(), name)
        assert (column.missing is None) == (wanted.missing is None)
        np.testing.assert_array_equal(column.missing, wanted.missing)


@st.composite
def tables(draw: Any) -> pa.Table:
    rows = draw(st.integers(1, 20))

    def column(kind: pa.DataType, values: Any) -> pa.Array:
        some = st.one_of(st.none(), values) if draw(st.booleans()) else values
        sliced = draw(st.integers(0, 3))  # whose buffers begin before it
        return pa.array(draw(st.lists(some, min_size=rows + sliced, max_size=rows + sliced)), kind)[sliced:]

    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    columns: dict[str, Any] = {"id": pa.array([f"{draw(text)}{row}" for row in range(rows)], pa.string())}
    if draw(st.booleans()):
        columns["group"] = column(draw(st.sampled_from([pa.string(), pa.large_string()])), text)
    for feature in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from([*INTEGERS, pa.float32(), pa.float64(), pa.string(), pa.large_string()]))
        if pa.types.is_integer(kind):
            edges = np.iinfo(kind.to_pandas_dtype())
            values = st.integers(int(edges.min), int(edges.max))
        elif pa.types.is_floating(kind):
            values = st.floats(width=kind.bit_width)
        else:
            values = text
        columns[f"features.{feature}"] = column(kind, values)
    metadata = draw(
        st.sampled_from([None, {}, {"dlen": '{"user": {"id": "u"}}'}, {"other": "x", "dlen": '{"top_k": 3}'}])
    )
    names = draw(st.permutations(list(columns)))
    return pa.table({name: columns[name] for name in names}).replace_schema_metadata(metadata)


@settings(max_examples=200, deadline=None)
@given(tables())
def test_compiled_loops_read_what_pyarrow_reads(arrow_loops, table):
    body = stream(table)
    assert arrow_loops.read_stream(body, b"dlen", 100) is not None
    same(arrow.parse(body, 100, "x"), by_pyarrow(body))
    assert arrow_loops.read_stream(body[:-8], b"dlen", 100) is not None  # the end's mark may be absent
    assert arrow_loops.read_stream(body, b"dlen", len(table) - 1) is None


@settings(max_examples=60, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_what_is_read_of_a_broken_stream_is_what_pyarrow_reads(table, rng):
    whole = stream(table)
    for _ in range(20):
        data = bytearray(whole)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 3)):
            if data:
                data[rng.randrange(len(data))] = rng.choice([0, 1, 2, 4, 8, 127, 128, 255, rng.randrange(256)])
        body = bytes(data)
        try:
            found = arrow.parse(body, 100, "x")
        except RequestRefused:
            continue
        try:
            wanted = by_pyarrow(body)
        except BodyMalformed:
            continue  # what is broken is nothing that is read: a column's metadata, the NUL behind a text
        same(found, wanted)
