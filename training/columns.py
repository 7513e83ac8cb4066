"""Feature columns of a table piece → the typed columns that `bundle.encode` takes.

Missing is null, and NaN in numbers. Knows nothing of codes, labels or splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from bundle.columns import Column, ListColumn
from bundle.features import CategoricalFeature, CategoricalListFeature, Feature, FeatureSchema, NumericFeature
from training.errors import ColumnTypeWrong

_STRINGS = (pl.String, pl.Categorical, pl.Enum)


def with_value_types(schema: FeatureSchema, columns: dict[str, pl.DataType], file: str) -> FeatureSchema:
    """Return the schema with every categorical feature's value_type filled in from the column types of `file`.

    Raises:
        ColumnTypeWrong: a column that cannot serve as what the schema declares.
    """
    return schema.model_copy(update={"features": tuple(_typed(f, columns[f.name], file) for f in schema.features)})


def clean(frame: pl.DataFrame, features: Sequence[Feature], file: str, first_row: int) -> pl.DataFrame:
    """Return the feature columns with the types that requests carry: Int64, String, Float64, or lists of them.

    NaN numbers become null, texts of a list feature are cut at its separator, nulls inside lists are dropped.
    `file`, and the number in it of the frame's first row, are for messages.

    Raises:
        ColumnTypeWrong: a value that does not fit, for example 2.5 or "x" in an integer feature.
    """
    return pl.DataFrame([_cleaned(frame.get_column(f.name), f, file, first_row) for f in features])


def typed_columns(frame: pl.DataFrame, features: Sequence[Feature]) -> dict[str, Column | ListColumn]:
    """Return the columns of a frame that `clean` made, for `PartEncoder.encode`."""
    return {
        feature.name: _list(frame.get_column(feature.name))
        if isinstance(feature, CategoricalListFeature)
        else _single(frame.get_column(feature.name))
        for feature in features
    }


def _typed(feature: Feature, dtype: pl.DataType, file: str) -> Feature:
    place = f"{file}: column {feature.name!r}"
    if isinstance(feature, NumericFeature):
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise ColumnTypeWrong(place, found=str(dtype), expected="numbers")
        return feature
    if isinstance(feature, CategoricalListFeature):
        if isinstance(dtype, pl.List):
            dtype = dtype.inner  # type: ignore[assignment]  # polars types it as a class or an instance
        elif dtype in _STRINGS and feature.separator is None:
            raise ColumnTypeWrong(place, found=str(dtype), expected="lists, or a `separator`")
        elif dtype not in _STRINGS and dtype != pl.Null:
            raise ColumnTypeWrong(place, found=str(dtype), expected="lists or separated text")
    if feature.value_type is not None:
        return feature
    if dtype in _STRINGS or dtype == pl.Null:
        return feature.model_copy(update={"value_type": "string"})
    if dtype.is_numeric() or dtype == pl.Boolean:
        return feature.model_copy(update={"value_type": "integer"})
    raise ColumnTypeWrong(place, found=str(dtype), expected="integers or strings")


def _cleaned(series: pl.Series, feature: Feature, file: str, first_row: int) -> pl.Series:
    try:
        if isinstance(feature, NumericFeature):
            return _finite(series.cast(pl.Float64).fill_nan(None), first_row)
        dtype = pl.Int64() if feature.value_type == "integer" else pl.String()
        if isinstance(feature, CategoricalFeature):
            return _whole(series, dtype, first_row)
        if not isinstance(series.dtype, pl.List):
            series = series.cast(pl.String).str.split(feature.separator or ",")
            series = series.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
        series = series.cast(pl.List(dtype))
        return series.list.drop_nulls() if series.to_arrow().flatten().null_count else series
    except pl.exceptions.PolarsError as exc:
        reason = str(exc).splitlines()[0][:160]
        wanted = "number" if isinstance(feature, NumericFeature) else feature.value_type
        raise ColumnTypeWrong(
            f"{file}: column {feature.name!r}", found=reason, expected=f"{wanted} values or null"
        ) from None


def _finite(series: pl.Series, first_row: int) -> pl.Series:
    if series.is_infinite().any():
        at = int(series.is_infinite().fill_null(False).arg_max() or 0)
        raise pl.exceptions.InvalidOperationError(f"infinity in row {first_row + at}")
    return series


def _whole(series: pl.Series, dtype: pl.DataType, first_row: int) -> pl.Series:
    """Return the series as integers or strings; floats must be whole numbers (a table with gaps has such)."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
        if (series != series.round()).any():
            at = int((series != series.round()).fill_null(False).arg_max() or 0)
            raise pl.exceptions.InvalidOperationError(f"{series[at]} in row {first_row + at}")
        series = series.cast(pl.Int64)
    return series.cast(dtype)


def _single(series: pl.Series) -> Column:
    missing = series.is_null().to_numpy() if series.null_count() else None
    if series.dtype != pl.String:
        return Column(series.fill_null(0).to_numpy(), missing)
    return _dictionary(series, missing)


def _dictionary(series: pl.Series, missing: np.typing.NDArray[np.bool_] | None) -> Column:
    encoded = series.to_arrow().dictionary_encode()
    values = np.array(encoded.dictionary.to_pylist() or [""], dtype=object)
    return Column(values, missing, encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))


def _list(series: pl.Series) -> ListColumn:
    lengths = series.list.len().fill_null(0).to_numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return ListColumn(_single(series.explode().drop_nulls()), offsets)
