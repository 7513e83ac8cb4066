"""The feature schema: what it holds, and what is refused with the place named."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bundle.errors import SchemaInvalid, SchemaNotFitted
from bundle.features import FeatureSchema, QuantileEncoding, VocabularyEncoding, read_schema

HASHED = {"type": "hash", "buckets": 8}
ITEM = {"name": "a", "side": "item", "kind": "categorical", "value_type": "integer", "encoding": HASHED}


def written(folder, document):
    path = folder / "features.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_fitted_schema_survives_its_file(tmp_path):
    number = {"name": "n", "side": "user", "kind": "numeric", "encoding": {"type": "quantile", "edges": [0.1, 1e-300]}}
    number["encoding"]["edges"].sort()
    schema = FeatureSchema.model_validate({"features": [ITEM, number]})
    assert read_schema(written(tmp_path, schema.model_dump_json())) == schema


def test_codes_count_the_missing_and_the_unseen_one():
    assert VocabularyEncoding(values=(1, 2, 3)).codes == 5
    assert QuantileEncoding(edges=(1.0, 2.0)).codes == 5
    assert QuantileEncoding(edges=()).codes == 3
    for encoding in (VocabularyEncoding(), QuantileEncoding()):
        with pytest.raises(SchemaNotFitted):
            _ = encoding.codes


def test_sides_keep_schema_order_within():
    features = [ITEM | {"name": n, "side": s} for n, s in zip("abcd", ("item", "context", "user", "user"), strict=True)]
    schema = FeatureSchema.model_validate({"features": features})
    assert [f.name for f in schema.request_part] == ["c", "d", "b"]
    assert [f.name for f in schema.item_part] == ["a"]


@pytest.mark.parametrize(
    ("document", "place", "expected"),
    [
        ("{", "document", "EOF"),
        ({"features": []}, "features", "at least 1"),
        ({"features": [ITEM, ITEM]}, "document", "unique, found twice: a"),
        ({"features": [ITEM | {"side": "user"}]}, "document", "side item"),
        ({"features": [ITEM | {"side": "shop"}]}, "features.0.categorical.side", "'user', 'item' or 'context'"),
        ({"features": [ITEM | {"colour": 1}]}, "features.0.categorical.colour", "Extra inputs"),
        ({"features": [ITEM | {"encoding": {"type": "hash", "buckets": 1}}]}, "buckets", "greater than or equal to 2"),
        ({"features": [ITEM], "version": 2}, "version", "1"),
    ],
)
def test_a_schema_that_contradicts_itself_names_the_place(tmp_path, document, place, expected):
    with pytest.raises(SchemaInvalid) as caught:
        read_schema(written(tmp_path, document))
    assert place in caught.value.thing
    assert expected in str(caught.value.expected)
    assert "features.json" in caught.value.thing


@pytest.mark.parametrize("edges", [[2.0, 1.0], [1.0, 1.0], [float("inf")]])
def test_edges_must_rise_and_be_finite(edges):
    with pytest.raises(ValidationError):
        QuantileEncoding(edges=tuple(edges))


def test_an_unfitted_file_is_refused(tmp_path):
    schema = {"features": [ITEM | {"encoding": {"type": "vocabulary"}}]}
    with pytest.raises(SchemaNotFitted, match="'a'.*no vocabulary values"):
        read_schema(written(tmp_path, schema))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SchemaInvalid, match="nowhere.json"):
        read_schema(tmp_path / "nowhere.json")
