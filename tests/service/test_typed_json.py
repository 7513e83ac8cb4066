"""Bodies decoded by the schema give the requests, and the complaints, of bodies decoded without it."""

from __future__ import annotations

import json
import math
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
from service.wire.request import RankRequest, plain
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
PLAIN = FeatureSchema.model_validate(
    {"features": [feature.model_dump() for feature in SCHEMA.features if feature.name != "tags"]}
)


def uncompiled(schema: FeatureSchema) -> TypedJson:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.wire.loops.json", None)
        return TypedJson(schema.item_part)


ROWS = TypedJson(SCHEMA.item_part)
READERS = [ROWS, uncompiled(SCHEMA)]

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
common = st.fixed_dictionaries(
    {},
    optional={
        "author id": st.one_of(st.none(), st.integers(-(2**63) - 1, 2**63)),
        "class": st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters='"\\'), max_size=4)),
        "f0": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**66), 2**66)),
        "buckets": st.one_of(st.none(), st.floats(-2, 2)),
    },
)
unfit = st.dictionaries(st.sampled_from(["author id", "class", "f0", "buckets", "tags", "other"]), anything, max_size=4)
candidate = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"features": fitting, "group": st.sampled_from(["a", None]), "vector": st.just([1.0, 2.0])}
    ),
    st.fixed_dictionaries({}, optional={"features": common, "group": st.sampled_from(["a", "é", None])}),
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
candidates = st.one_of(rows, rows.map(in_columns), spoiled, spoiled_columns, anything)


@st.composite
def written(draw: st.DrawFn, candidates: st.SearchStrategy[Any]) -> bytes:
    """A body in one of many writings, with other members before and behind the candidates."""
    around = st.dictionaries(
        st.sampled_from(["request_id", "user", "context", "explain", "top_k", "more"]),
        st.one_of(st.just({}), st.just("{]}"), st.just({"id": '"\\'}), st.integers(0, 3), anything),
        max_size=2,
    )
    document = {**draw(around), "candidates": draw(candidates), **draw(around)}
    indent, ascii_only = draw(st.sampled_from([None, 1])), draw(st.booleans())
    separators = draw(st.sampled_from([None, (",", ":"), (" ,\t", "\r: ")]))
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only, separators=separators)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A body that fits, but for a few of its bytes."""
    body = bytearray(draw(written(st.one_of(rows, rows.map(in_columns)))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body) - 1))
        other = draw(st.one_of(st.sampled_from(b'{}[]",:\\ \0-.eE0n\xc3'), st.integers(0, 255)))
        match draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                body[at] = other
            case "insert":
                body.insert(at, other)
            case "remove" if len(body) > 1:
                del body[at]
            case "cut" if at:
                del body[at:]
    return bytes(body)


bodies = st.one_of(written(candidates), broken())


def outcome(body: bytes, rows_of: TypedJson | None) -> tuple[Any, ...]:
    """Return all of a request, its features as the model takes them, or the complaint about it."""
    try:
        return shown(parse_json(body, 5, "r", rows_of))
    except (ServiceError, BundleError) as exc:
        return type(exc), str(exc)


def shown(request: RankRequest) -> tuple[Any, ...]:
    try:
        encoded = ENCODER.item.encode(typed(ENCODER.item, request.items), len(request.ids))
    except (ServiceError, BundleError) as exc:
        return type(exc), str(exc)
    vectors = None if request.vectors_ND is None else request.vectors_ND.tolist()
    arrays = encoded.codes_NC.tolist(), encoded.values_NV.tolist(), encoded.missing
    head = request.request_id, request.user_id, request.user, request.context, request.top_k, request.explain
    return *head, request.ids, request.groups, vectors, arrays


@settings(max_examples=1000, deadline=None)
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
@example(b'{"candidates":{"id":["a"],"features":{"f0":[]}}}')
@example(b'{"candidates":{"id":["a"],"features":{"f0":[1],"f0":[2]}}}')
@example(b'{"candidates":{"id":["a"],"group":[]}}')
@example(b'{"candidates":{"id":["a"],"id":["b"]}}')
@example(b'{"candidates":[{"id":"a","id":"b"}]}')
@example(b'{"candidates":[{"id":"a"}],"candidates":[{"id":"b"}]}')
@example(b'{"candidates":[],"\\u0063andidates":[{"id":"b"}]}')
@example(b'{"candidates":[{"id":"a","features":{"author id":01}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":-}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":1.}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":1e}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":.5}}]}')
@example(b'{"candidates":[{"id":"a","features":{"f0":nulL}}]}')
@example(b'{"candidates":[{"id":"a","group":nul}]}')
@example(b'{"candidates":[{"id":"%b"}]}' % (257 * b"a"))
@example(b'{"candidates":[{"id":"%b"}]}' % (256 * "é".encode()))
@example(b'{"candidates":[{"id":"a"},]}')
@example(b'{"candidates":[{"id":"a",}]}')
@example(b'{"candidates":[%b]}' % b",".join(b'{"id":"%d"}' % at for at in range(6)))
@example(b'{"candidates":{"id":[%b]}}' % b",".join(b'"%d"' % at for at in range(6)))
@example(b'{"user":{"id":"]"}"},"candidates":[]}')
@example(b'{"candidates":[]}x')
@example(b' {"candidates" : [ { "id" : "a" } ] , "top_k" : 1 } ')
@example(b"")
@example(b"{")
def test_the_schema_changes_nothing(body):
    assert [outcome(body, reader) for reader in READERS] == [outcome(body, None)] * 2


@settings(max_examples=400, deadline=None)
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("9007199254740993")
@example("9007199254740992e22")
@example("1e23")
@example("-0.0")
@example("2.2250738585072011e-308")
@example("1.7976931348623159e308")
@example("0." + 400 * "0" + "1e400")
def test_a_number_is_the_nearest_double(json_loops, text):
    reader = json_loops.CandidateReader(["f0"], ["number"])
    read = reader.read(b'{"candidates":[{"id":"a","features":{"f0":%b}}]}' % text.encode(), 5)
    if math.isinf(float(text)):
        assert read is None
    else:
        assert read[3]["f0"].values.tobytes() == np.float64(text).tobytes()


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63) + 1, 0, 10**18])
def test_integers_of_64_bits_are_read_exactly(json_loops, value):
    reader = json_loops.CandidateReader(["x"], ["integer"])
    read = reader.read(b'{"candidates":{"id":["a"],"features":{"x":[%d]}}}' % value, 5)
    assert read[3]["x"].values.tolist() == [value]


@pytest.mark.parametrize("many", [1, 5])
def test_what_is_common_is_read_by_compiled_loops(json_loops, many):
    rows = [
        {"id": f"é{at}", "group": None if at else "a", "features": {"f0": at / 2, "class": "ü", "author id": None}}
        for at in range(many)
    ]
    for shape in (rows, in_columns(rows)):
        text = json.dumps({"user": {"id": "{"}, "candidates": shape}, indent=1, ensure_ascii=False)
        read = TypedJson(PLAIN.item_part)._reader.read(text.encode(), 5)
        assert read is not None
        head, ids, groups, items = read
        assert json.loads(head) == {"user": {"id": "{"}, "candidates": []}
        assert ids == [row["id"] for row in rows] and groups == [row["group"] for row in rows]
        assert items.keys() == {"f0", "class"}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_a_feature_whose_name_json_must_escape_is_left_to_others(json_loops, name):
    reader = json_loops.CandidateReader([name], ["integer"])
    assert reader.read(b'{"candidates":[{"id":"a","features":{"%b":1}}]}' % name.encode(), 5) is None


def parsed(reader: TypedJson, *features: dict[str, Any] | None) -> RankRequest:
    given = [{"id": str(at)} | ({} if row is None else {"features": row}) for at, row in enumerate(features)]
    return parse_json(json.dumps({"candidates": given}).encode(), 5, "r", reader)


each_reader = pytest.mark.parametrize("reader", READERS, ids=["compiled", "not compiled"])


@each_reader
def test_whole_columns_of_numbers_come_as_arrays(reader):
    columns = parsed(reader, {"author id": 1, "f0": 2}, {"author id": -5, "f0": 0.5}).items
    assert columns.keys() == {"author id", "f0"}
    assert all(isinstance(column, Column) for column in columns.values())
    assert [column.values.dtype for column in columns.values()] == [np.int64, np.float64]  # type: ignore[union-attr]
    assert [column.values.tolist() for column in columns.values()] == [[1, -5], [2.0, 0.5]]  # type: ignore[union-attr]


@each_reader
@pytest.mark.parametrize("without", [(None, None), ({}, {}), (None, {"f0": None})])
def test_candidates_that_bring_nothing_bring_no_columns(reader, without):
    assert parsed(reader, *without).items == {}


@each_reader
def test_a_value_that_only_some_bring_is_missing_at_the_others(reader):
    items = parsed(reader, {"author id": 7}, None, {"author id": None}).items
    assert items.keys() == {"author id"} and list(plain(items["author id"])) == [7, None, None]


def test_a_schema_is_compiled_once():
    assert TypedJson(SCHEMA.item_part)._decoder is ROWS._decoder
