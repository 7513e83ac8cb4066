"""Bodies decoded by the schema give the requests, and the complaints, of bodies decoded without it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundle.columns import Column
from bundle.encode import SchemaEncoder
from bundle.errors import BundleError
from bundle.features import FeatureSchema
from service.errors import ServiceError
from service.ranker import typed
from service.wire.encodings import parse_json
from service.wire.request import RankRequest
from service.wire.typed_json import TypedJson

HASH = {"type": "hash", "buckets": 50}
STANDARDISE = {"type": "standardise", "mean": 0.0, "deviation": 1.0}
QUANTILE = {"type": "quantile", "edges": [0.0, 1.0]}
SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"name": "user", "side": "user", "kind": "categorical", "value_type": "integer", "encoding": HASH},
            {"name": "author id", "side": "item", "kind": "categorical", "value_type": "integer", "encoding": HASH},
            {"name": "class", "side": "item", "kind": "categorical", "value_type": "string", "encoding": HASH},
            {"name": "f0", "side": "item", "kind": "numeric", "encoding": STANDARDISE},
            {"name": "buckets", "side": "item", "kind": "numeric", "encoding": QUANTILE},
            {"name": "tags", "side": "item", "kind": "categorical_list", "value_type": "integer", "max_length": 2,
             "encoding": HASH},
        ]
    }
)  # fmt: skip
ENCODER = SchemaEncoder(SCHEMA)
ROWS = TypedJson(SCHEMA.item_part)

anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4), st.lists(st.integers(-3, 3), max_size=3), st.just({}),
)  # fmt: skip
fitting = st.fixed_dictionaries(
    {},
    optional={
        "author id": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "class": st.one_of(st.none(), st.text(max_size=4)),
        "f0": st.one_of(st.none(), st.floats(-1e300, 1e300), st.integers(-(2**60), 2**60)),
        "buckets": st.one_of(st.none(), st.floats(-2, 2)),
        "tags": st.one_of(st.none(), st.lists(st.integers(-3, 3), max_size=4)),
    },
)
unfit = st.dictionaries(st.sampled_from(["author id", "class", "f0", "buckets", "tags", "other"]), anything, max_size=4)
candidate = st.fixed_dictionaries(
    {}, optional={"features": fitting, "group": st.sampled_from(["a", None]), "vector": st.just([1.0, 2.0])}
)
rows = st.lists(candidate, max_size=6).map(lambda rows: [{"id": str(at), **row} for at, row in enumerate(rows)])
spoiled = st.lists(
    st.fixed_dictionaries({}, optional={"id": anything, "features": st.one_of(unfit, anything), "more": anything}),
    max_size=4,
)


def in_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidates as columns; features that any has, null where another has none."""
    names = {name for row in rows for name in row.get("features", {})}
    columns: dict[str, Any] = {"id": [row["id"] for row in rows]}
    columns["features"] = {name: [row.get("features", {}).get(name) for row in rows] for name in names}
    if any("group" in row for row in rows):
        columns["group"] = [row.get("group") for row in rows]
    return columns


spoiled_columns = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(anything, st.lists(st.sampled_from("abc"), max_size=3)),
        "features": st.one_of(
            anything,
            st.dictionaries(
                st.sampled_from(["author id", "f0", "other"]), st.one_of(anything, st.lists(anything, max_size=3))
            ),
        ),
        "group": anything,
        "vector": anything,
    },
)
bodies = st.one_of(rows, rows.map(in_columns), spoiled, spoiled_columns, anything).map(
    lambda given: json.dumps({"candidates": given}).encode()
)


def outcome(body: bytes, rows_of: TypedJson | None) -> tuple[Any, ...]:
    """Return all of a request, its features as the model takes them, or the complaint about it."""
    try:
        request = parse_json(body, 5, "r", rows_of)
        encoded = ENCODER.item.encode(typed(ENCODER.item, request.items), len(request.ids))
    except (ServiceError, BundleError) as exc:
        return type(exc), str(exc)
    vectors = None if request.vectors_ND is None else request.vectors_ND.tolist()
    arrays = encoded.codes_NC.tolist(), encoded.values_NV.tolist(), encoded.missing
    return request.request_id, request.ids, request.groups, vectors, arrays


@settings(max_examples=600, deadline=None)
@given(bodies)
@example(b'{"candidates":[{"id":"a","features":{"f0":1e400}}]}')
@example(b'{"candidates":[{"id":"a","features":{"author id":1.0}}]}')
@example(b'{"candidates":[{"id":"a","features":{"author id":1,"author id":2}}]}')
@example(b'{"candidates":[{"id":"a","features":null}]}')
@example(b'{"candidates":[{"id":"a","features":{"class":"\\ud800"}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":9007199254740993}}]}')
@example(b'{"candidates":[{"id":"\xff"}]}')
@example(b'{"candidates":' + b"[" * 5000)
@example(b'{"candidates":{"id":["a"],"features":{"f0":[1]}}}')
def test_the_schema_changes_nothing(body):
    assert outcome(body, ROWS) == outcome(body, None)


def parsed(*features: dict[str, Any] | None) -> RankRequest:
    given = [{"id": str(at)} | ({} if row is None else {"features": row}) for at, row in enumerate(features)]
    return parse_json(json.dumps({"candidates": given}).encode(), 5, "r", ROWS)


def test_whole_columns_of_numbers_come_as_arrays():
    columns = parsed({"author id": 1, "f0": 2}, {"author id": -5, "f0": 0.5}).items
    assert columns.keys() == {"author id", "f0"}
    assert all(isinstance(column, Column) for column in columns.values())
    assert [column.values.dtype for column in columns.values()] == [np.int64, np.float64]  # type: ignore[union-attr]
    assert [column.values.tolist() for column in columns.values()] == [[1, -5], [2.0, 0.5]]  # type: ignore[union-attr]


@pytest.mark.parametrize("without", [(None, None), ({}, {}), (None, {"f0": None})])
def test_candidates_that_bring_nothing_bring_no_columns(without):
    assert parsed(*without).items == {}


def test_a_value_that_only_some_bring_is_missing_at_the_others():
    assert parsed({"author id": 7}, None, {"author id": None}).items == {"author id": (7, None, None)}


def test_a_schema_is_compiled_once():
    assert TypedJson(SCHEMA.item_part)._decoder is ROWS._decoder
