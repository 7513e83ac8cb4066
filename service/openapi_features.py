"""The features of the model that serves, as the OpenAPI document tells them: names, types and an example."""

from __future__ import annotations

from typing import Any

from bundle.encode import SchemaEncoder
from bundle.features import CategoricalListFeature, Feature, NumericFeature, VocabularyEncoding

INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}


def features_schema(encoder: SchemaEncoder, side: str) -> dict[str, Any]:
    """Return the JSON schema of one row's features of a side."""
    properties = {f.name: {"anyOf": [value_schema(f), {"type": "null"}]} for f in _of_side(encoder, side)}
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "description": "null is missing.",
    }


def columns_schema(encoder: SchemaEncoder) -> dict[str, Any]:
    """Return the JSON schema of the item features as columns."""
    rows = features_schema(encoder, "item")
    columns = {name: {"type": "array", "items": value} for name, value in rows["properties"].items()}
    return {**rows, "properties": columns}


def value_schema(feature: Feature) -> dict[str, Any]:
    """Return the JSON schema of one value."""
    if isinstance(feature, NumericFeature):
        return {"type": "number"}
    value: dict[str, Any] = {"type": "string"} if feature.value_type == "string" else {"type": "integer", **INT64}
    return {"type": "array", "items": value} if isinstance(feature, CategoricalListFeature) else value


def features_example(encoder: SchemaEncoder, side: str) -> dict[str, object]:
    """Return a value of each feature of a side."""
    return {feature.name: _example(feature) for feature in _of_side(encoder, side)}


def _example(feature: Feature) -> object:
    if isinstance(feature, NumericFeature):
        return 0.5
    value: object = "a" if feature.value_type == "string" else 1
    if isinstance(feature.encoding, VocabularyEncoding) and feature.encoding.values:
        value = feature.encoding.values[0]
    return [value] if isinstance(feature, CategoricalListFeature) else value


def _of_side(encoder: SchemaEncoder, side: str) -> list[Feature]:
    return [feature for feature in encoder.schema.features if feature.side == side]
