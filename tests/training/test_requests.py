"""Rank requests built from held-back rows encode to the very codes that evaluation uses."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from training.dataset import read_prepared
from training.errors import RequestImpossible
from training.requests import RequestChoice, build_requests


def encoded(part, rows):
    names = {name for row in rows for name in row}
    return part.encode(part.columns_from_python({n: [row.get(n) for row in rows] for n in names}), len(rows))


def check_round_trip(prepared, body, split):
    """Every candidate that is a row of the user must encode to that row's codes."""
    rows = pl.read_parquet(prepared.rows_path(split)).with_row_index("at")
    own = rows.filter(pl.col("__user").cast(pl.String) == body["user"]["id"])
    items = {str(item): at for item, at in reversed(list(zip(own["__item"], own["at"], strict=True)))}
    arrays = prepared.split(split)
    request = encoded(prepared.encoder.request, [body["user"]["features"] | body["context"]])
    first = int(own["at"][0])
    assert np.array_equal(request.codes_NC[0], arrays.codes[first, : prepared.request_code_columns])
    assert np.array_equal(request.values_NV[0], arrays.values[first, : prepared.request_value_columns])
    mine = [candidate for candidate in body["candidates"] if candidate["id"] in items]
    at = [items[candidate["id"]] for candidate in mine]
    item = encoded(prepared.encoder.item, [candidate["features"] for candidate in mine])
    assert len(mine) > 1
    assert np.array_equal(item.codes_NC, arrays.codes[at][:, prepared.request_code_columns :])
    assert np.array_equal(item.values_NV, arrays.values[at][:, prepared.request_value_columns :])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_request_encodes_to_the_prepared_codes(prepared, split):
    data = read_prepared(prepared)
    for body in build_requests(data, RequestChoice(split=split, count=3, candidates=500)):
        check_round_trip(data, json.loads(json.dumps(body)), split)


def test_candidates_are_distinct_and_as_many_as_asked(prepared):
    (body,) = build_requests(read_prepared(prepared), RequestChoice(candidates=25))
    ids = [candidate["id"] for candidate in body["candidates"]]
    assert len(ids) == len(set(ids)) == 25


def test_each_request_is_of_another_user(prepared):
    bodies = list(build_requests(read_prepared(prepared), RequestChoice(count=5, candidates=3)))
    assert len({body["user"]["id"] for body in bodies}) == 5
    assert len({body["request_id"] for body in bodies}) == 5


def test_a_user_can_be_named(prepared):
    data = read_prepared(prepared)
    user = str(pl.read_parquet(data.rows_path("test"))["__user"][7])
    (body,) = build_requests(data, RequestChoice(user=user))
    assert body["user"]["id"] == user


def test_what_cannot_be_built_is_said(prepared):
    data = read_prepared(prepared)
    with pytest.raises(RequestImpossible, match="no row in test"):
        list(build_requests(data, RequestChoice(user="nobody")))
    with pytest.raises(RequestImpossible, match="at most"):
        list(build_requests(data, RequestChoice(count=10**6)))


def test_missing_values_are_left_out(prepared):
    for body in build_requests(read_prepared(prepared), RequestChoice(count=5)):
        features = [body["user"]["features"], body["context"], *(c["features"] for c in body["candidates"])]
        assert None not in [value for group in features for value in group.values()]
