"""Raw feature values → model input, the one implementation that training and serving share.

Per part of the schema (request: user and context; item) the input is a matrix of integer codes and a matrix
of standardised numbers. Code columns stand in schema order, lists after single values; a list feature takes
`max_length` columns, filled with the missing code. Nothing here depends on the process, the platform or the
order of rows.

Legend: N rows, C code columns, V value columns, L a list feature's max_length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bundle import loops
from bundle.columns import Column, ListColumn, lists_from_python, values_from_python
from bundle.encode_row import RowEncoder
from bundle.errors import SchemaNotFitted, UnknownFeature, WrongLength, WrongType
from bundle.features import (
    FIRST_CODE,
    MISSING_CODE,
    CategoricalFeature,
    CategoricalListFeature,
    Feature,
    FeatureSchema,
    HashEncoding,
    NumericFeature,
    StandardiseEncoding,
)
from bundle.lookups import Codes, finite, hash_codes, lookup_of, transformed

Values = NDArray[np.float32]

_ROWS_HASHED_TOGETHER = 4096


class EncodedPart(Struct, frozen=True):
    """Model input of one part of the schema.

    Attributes:
        codes_NC: int32 [N, C].
        values_NV: float32 [N, V]; each standardised feature takes two columns: value, 1 where missing.
        missing: rows without a value, by feature; only features with any.
    """

    codes_NC: Codes
    values_NV: Values
    missing: dict[str, int]


class PartEncoder:
    """Encodes the columns of one part of a fitted schema; built once, used for every request or file."""

    def __init__(self, features: Sequence[Feature]) -> None:
        """Build the look-ups of each feature.

        Raises:
            SchemaNotFitted: an encoding lacks what training stores in it.
        """
        self.code_features = code_features(features)
        self.value_features = value_features(features)
        self.names = frozenset(feature.name for feature in features)
        self.code_columns = sum(feature.columns for feature in self.code_features)
        self.value_columns = 2 * len(self.value_features)
        self._features = {feature.name: feature for feature in features}
        self.lookups = {f.name: lookup_of(f) for f in self.code_features}
        self.default_codes = {f.name: self._default_code(f) for f in self.code_features}
        ends = np.cumsum([feature.columns for feature in self.code_features]).tolist()
        self._place = {f.name: end - f.columns for f, end in zip(self.code_features, ends, strict=True)}
        self._hash_buckets = {
            feature.name: feature.encoding.buckets
            for feature in self.code_features
            if isinstance(feature, CategoricalFeature)
            and isinstance(feature.encoding, HashEncoding)
            and feature.value_type == "integer"
        }
        self._not_hashed = [f for f in self.code_features if f.name not in self._hash_buckets]
        self.hash_plan = [
            (name, buckets, self._place[name], self.default_codes[name]) for name, buckets in self._hash_buckets.items()
        ]
        """Of each feature of hashed integers: name, buckets, column, and the code where there is no value."""

    def encode(self, columns: Mapping[str, Column | ListColumn], rows: int) -> EncodedPart:
        """Return the model input of `rows` rows; a feature without a column is missing in every row.

        Raises:
            UnknownFeature: a column that the schema does not hold.
            WrongLength: a column of another number of rows.
            WrongType: values of another type than the schema declares.
            NotFinite: NaN or infinity in a numeric feature.
        """
        if unknown := columns.keys() - self.names:
            raise UnknownFeature(
                f"feature {min(unknown)!r}", found="an unknown name", expected=f"one of {_shortened(self.names)}"
            )
        codes_NC = np.empty((rows, self.code_columns), dtype=np.int32)
        values_NV = np.empty((rows, self.value_columns), dtype=np.float32)
        hashed, missing = self._hash_together(columns, codes_NC)
        for name in columns.keys() - hashed:
            if len(column := columns[name]) != rows:
                raise WrongLength(f"feature {name!r}", found=f"{len(column)} rows", expected=f"{rows} rows")
        others = self._not_hashed
        if len(hashed) < len(self.hash_plan):
            others = [feature for feature in self.code_features if feature.name not in hashed]
        for feature in others:
            at = self._place[feature.name]
            out_NC = codes_NC[:, at : at + feature.columns]
            if lacking := self._fill_codes(feature, columns.get(feature.name), out_NC):
                missing[feature.name] = lacking
        for index, feature in enumerate(self.value_features):
            lacking = _fill_values(feature, columns.get(feature.name), values_NV[:, 2 * index : 2 * index + 2])
            if lacking:
                missing[feature.name] = lacking
        return EncodedPart(codes_NC, values_NV, missing)

    def encode_row(self, values: Mapping[str, object]) -> EncodedPart | None:
        """Return the model input of one row of Python values, None or absent being missing, as `encode` does.

        None where a value or name is not taken; `columns_from_python` and `encode` say why.
        """
        encoded = self._rows.encode(values)
        return None if encoded is None else EncodedPart(*encoded)

    @cached_property
    def _rows(self) -> RowEncoder:
        return RowEncoder(self)

    def columns_of(self, feature: Feature) -> range:
        """Return the columns that hold a feature's codes."""
        return range(self._place[feature.name], self._place[feature.name] + feature.columns)

    def columns_from_python(self, columns: Mapping[str, Sequence[object]]) -> dict[str, Column | ListColumn]:
        """Return typed columns from lists of Python values, where None is missing.

        Raises:
            UnknownFeature: a name that the schema does not hold.
            WrongType: values of another type than the schema declares, named with the first such row.
        """
        typed: dict[str, Column | ListColumn] = {}
        for name, values in columns.items():
            feature = self._features.get(name)
            if feature is None:
                raise UnknownFeature(
                    f"feature {name!r}", found="an unknown name", expected=f"one of {_shortened(self.names)}"
                )
            if isinstance(feature, CategoricalListFeature):
                typed[name] = lists_from_python(name, values, value_type_of(feature))
            else:
                typed[name] = values_from_python(name, values, value_type_of(feature))
        return typed

    def _hash_together(
        self, columns: Mapping[str, Column | ListColumn], codes_NC: Codes
    ) -> tuple[Set[str], dict[str, int]]:
        """Write the codes of features of hashed integers at once: a request is short, and calls cost.

        Returns:
            Those features, where the columns were what is expected of them; of them rows without a value, where any.
        """
        if loops.compiled is not None:
            missing, left = loops.compiled.hash_columns(columns, self.hash_plan, codes_NC, FIRST_CODE)
            return self._hash_buckets.keys() - left if left else self._hash_buckets.keys(), missing
        rows, missing = len(codes_NC), {}
        if rows > _ROWS_HASHED_TOGETHER:
            return frozenset(), {}
        plain = {
            name: column
            for name in self._hash_buckets
            if isinstance(column := columns.get(name), Column)
            and column.indices is None
            and column.values.dtype.kind in "iu"
            and len(column) == rows
        }
        if not plain:
            return frozenset(), {}
        buckets, places = [self._hash_buckets[name] for name in plain], [self._place[name] for name in plain]
        values_HN = np.concatenate([column.values for column in plain.values()], dtype=np.int64, casting="unsafe")
        keys_HN = values_HN.reshape(len(plain), rows)
        codes_NC[:, places] = hash_codes(keys_HN, np.array(buckets, dtype=np.uint64)[:, None]).T
        for name, column in plain.items():
            if lacking := self._fill_missing(name, column, codes_NC[:, self._place[name]]):
                missing[name] = lacking
        return plain.keys(), missing

    def _fill_codes(self, feature: Feature, column: Column | ListColumn | None, out: Codes) -> int:
        """Write one feature's codes into `out` [N, columns]; return how many rows lack a value."""
        if column is None:
            out[:] = self.default_codes[feature.name]
            return len(out)
        lookup = self.lookups[feature.name]
        if isinstance(feature, CategoricalListFeature):
            return _fill_list(feature, column, lookup, out)
        if isinstance(column, ListColumn):
            raise WrongType(f"feature {feature.name!r}", found="a list", expected=f"one {value_type_of(feature)}")
        _check_dtype(feature, column)
        codes_N = lookup(column.values)
        out[:, 0] = codes_N if column.indices is None else codes_N[column.indices]
        return self._fill_missing(feature.name, column, out[:, 0])

    def _fill_missing(self, name: str, column: Column, out_N: Codes) -> int:
        """Write the default code where a row lacks a value; return how many do."""
        if column.missing is None:
            return 0
        out_N[column.missing] = self.default_codes[name]
        return int(np.count_nonzero(column.missing))

    def _default_code(self, feature: Feature) -> int:
        """Return the code written where a value is missing: the default's, or the missing code."""
        if feature.default is None:
            return MISSING_CODE
        column = values_from_python(feature.name, [feature.default], value_type_of(feature))
        return int(self.lookups[feature.name](column.values)[0])


class SchemaEncoder:
    """Both parts of a fitted schema: `request` (user, then context features) and `item`."""

    def __init__(self, schema: FeatureSchema) -> None:
        """Build the two part encoders."""
        schema.check_fitted()
        self.schema = schema
        self.request = PartEncoder(schema.request_part)
        self.item = PartEncoder(schema.item_part)


def code_features(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Return the features that have code columns, in column order: single values, then lists."""
    single = tuple(f for f in features if f.columns and not isinstance(f, CategoricalListFeature))
    return single + tuple(f for f in features if isinstance(f, CategoricalListFeature))


def value_features(features: Sequence[Feature]) -> tuple[NumericFeature, ...]:
    """Return the standardised features, in column order."""
    return tuple(f for f in features if isinstance(f, NumericFeature) and not f.columns)


def _fill_list(
    feature: CategoricalListFeature,
    column: Column | ListColumn,
    lookup: Callable[[NDArray[np.generic]], Codes],
    out_NL: Codes,
) -> int:
    """Write the codes of a list feature, cut at its max_length; return how many rows have no value."""
    if not isinstance(column, ListColumn):
        raise WrongType(f"feature {feature.name!r}", found="single values", expected="a list per row")
    _check_dtype(feature, column.items)
    codes = lookup(column.items.values)
    if column.items.indices is not None:
        codes = codes[column.items.indices]
    starts, lengths = column.offsets[:-1], np.diff(column.offsets)
    kept = np.minimum(lengths, feature.max_length)
    rows = np.repeat(np.arange(len(kept)), kept)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
    out_NL[:] = MISSING_CODE
    out_NL[rows, slots] = codes[np.repeat(starts, kept) + slots]
    return int(np.count_nonzero(kept == 0))


def _fill_values(feature: NumericFeature, column: Column | ListColumn | None, out_N2: Values) -> int:
    """Write a standardised feature's value and missing columns; return how many rows lack a value."""
    encoding = feature.encoding
    if not isinstance(encoding, StandardiseEncoding) or encoding.mean is None or encoding.deviation is None:
        raise SchemaNotFitted(f"feature {feature.name!r}", found="no mean", expected="a fitted schema")
    if isinstance(column, ListColumn):
        raise WrongType(f"feature {feature.name!r}", found="a list", expected="one number")
    rows = len(out_N2)
    missing = np.ones(rows, dtype=bool) if column is None else column.missing
    values = np.zeros(rows) if column is None else finite(feature.name, column.plain())
    lacking = 0 if missing is None else int(np.count_nonzero(missing))
    if missing is not None and feature.default is not None:
        values = np.where(missing, feature.default, values)
        missing = None
    scaled = np.clip(
        (transformed(values, encoding.transform) - encoding.mean) / encoding.deviation, -encoding.clip, encoding.clip
    )
    out_N2[:, 0] = scaled if missing is None else np.where(missing, 0.0, scaled)
    out_N2[:, 1] = 0.0 if missing is None else missing
    return lacking


def _check_dtype(feature: Feature, column: Column) -> None:
    """Check that typed values are of the type that the schema declares."""
    wanted = value_type_of(feature)
    kinds = {"integer": "iu", "number": "iuf", "string": "UO"}[wanted]
    if column.values.dtype.kind not in kinds:
        raise WrongType(f"feature {feature.name!r}", found=str(column.values.dtype), expected=f"{wanted} values")


def value_type_of(feature: Feature) -> str:
    """Return "integer", "string" or "number"."""
    if isinstance(feature, CategoricalFeature | CategoricalListFeature):
        if feature.value_type is None:
            raise SchemaNotFitted(f"feature {feature.name!r}", found="no value_type", expected="a fitted schema")
        return feature.value_type
    return "number"


def _shortened(names: frozenset[str]) -> str:
    shown = sorted(names)[:20]
    return ", ".join(shown) + (f" … ({len(names)} in all)" if len(names) > len(shown) else "")
