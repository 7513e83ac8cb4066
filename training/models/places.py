"""Where each feature lies in a network (columns of the input x, rows of a table), and which codes two schemas share.

Knows the order that `training.models.layers` gives them; nothing of runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.encode import code_features, value_features
from bundle.features import (
    FIRST_CODE,
    MISSING_CODE,
    UNSEEN_CODE,
    CategoricalListFeature,
    Feature,
    FeatureSchema,
    HashEncoding,
    NumericFeature,
    QuantileEncoding,
    StandardiseEncoding,
    VocabularyEncoding,
)

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """A feature's place.

    Attributes:
        feature: the fitted feature.
        columns: of the network's input x.
        first_row: of the table of the feature's embedding size; 0 for a standardised number, which has no rows.
    """

    feature: Feature
    columns: range
    first_row: int


def places(schema: FeatureSchema) -> dict[str, Place]:
    """Return every feature's place, by name."""
    found: dict[str, Place] = {}
    column, rows = 0, dict[int, int]()
    for part in (schema.request_part, schema.item_part):
        for feature in code_features(part):
            size = feature.embedding_size
            width = size if isinstance(feature, CategoricalListFeature) else size * feature.columns
            found[feature.name] = Place(feature, range(column, column + width), rows.get(size, 0))
            rows[size] = rows.get(size, 0) + codes_of(feature)
            column += width
        for feature in value_features(part):
            found[feature.name] = Place(feature, range(column, column + 2), 0)
            column += 2
    return found


def codes_of(feature: Feature) -> int:
    """Return the number of a feature's codes, 0 for a standardised number."""
    return 0 if isinstance(feature.encoding, StandardiseEncoding) else feature.encoding.codes


def common_codes(old: Feature, new: Feature) -> tuple[Codes, Codes] | None:
    """Return the codes of equal meaning, the old and the new one of each, or None where the two do not compare.

    Vocabularies are matched by value, hash buckets by number; quantile buckets must have equal edges. A standardised
    number has no codes: it compares if its transform and clip are the same.
    """
    if old.kind != new.kind:
        return None
    if isinstance(old.encoding, StandardiseEncoding) and isinstance(new.encoding, StandardiseEncoding):
        alike = (old.encoding.transform, old.encoding.clip) == (new.encoding.transform, new.encoding.clip)
        return (np.empty(0, np.int64), np.empty(0, np.int64)) if alike else None
    if old.embedding_size != new.embedding_size or _value_type(old) != _value_type(new):
        return None
    if isinstance(old.encoding, VocabularyEncoding) and isinstance(new.encoding, VocabularyEncoding):
        return _by_value(old.encoding, new.encoding)
    if isinstance(old.encoding, HashEncoding) and isinstance(new.encoding, HashEncoding):
        return _all(new.encoding.codes) if old.encoding.buckets == new.encoding.buckets else None
    if isinstance(old.encoding, QuantileEncoding) and isinstance(new.encoding, QuantileEncoding):
        return _all(new.encoding.codes) if old.encoding.edges == new.encoding.edges else None
    return None


def _by_value(old: VocabularyEncoding, new: VocabularyEncoding) -> tuple[Codes, Codes] | None:
    old_codes = {value: FIRST_CODE + index for index, value in enumerate(old.values or ())}
    pairs = [
        (old_codes[value], FIRST_CODE + index) for index, value in enumerate(new.values or ()) if value in old_codes
    ]
    if not pairs:
        return None
    codes = np.array([(MISSING_CODE, MISSING_CODE), (UNSEEN_CODE, UNSEEN_CODE), *pairs], np.int64)
    return codes[:, 0], codes[:, 1]


def _all(codes: int) -> tuple[Codes, Codes]:
    return np.arange(codes), np.arange(codes)


def _value_type(feature: Feature) -> str | None:
    return None if isinstance(feature, NumericFeature) else feature.value_type
