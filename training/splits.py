"""Which split a row belongs to. Knows nothing of features or labels."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import ColumnTypeWrong, SplitInvalid
from training.schema import SPLITS, ColumnSplit, DatasetSchema, RandomSplit, TimeSplit, TimeValue

TRAIN, VALIDATION, TEST = range(len(SPLITS))
LEFT_OUT = -1

Assign = Callable[[pl.DataFrame, str], NDArray[np.int8]]
"""From a piece of the table and its place (for messages) to a split number, or LEFT_OUT, per row."""


def split_assigner(schema: DatasetSchema, columns: dict[str, pl.DataType]) -> Assign:
    """Return the function that assigns the rows of consecutive pieces; make a new one for each pass.

    Raises:
        ColumnTypeWrong: the split column is of a type that the split cannot use.
    """
    split = schema.split
    if isinstance(split, RandomSplit):
        return _random(split)
    name = schema.split_column
    assert name is not None
    if isinstance(split, ColumnSplit):
        if columns[name] not in (pl.String, pl.Categorical, pl.Enum):
            raise ColumnTypeWrong(f"split column {name!r}", found=str(columns[name]), expected="strings")
        return lambda frame, place: _by_column(frame.get_column(name), place)
    return _by_time(split, name, columns[name])


def _random(split: RandomSplit) -> Assign:
    random = np.random.Generator(np.random.Philox(split.seed))
    bounds = np.array([1 - split.validation - split.test, 1 - split.test])
    return lambda frame, _: np.searchsorted(bounds, random.random(len(frame)), side="right").astype(np.int8)


def _by_column(series: pl.Series, place: str) -> NDArray[np.int8]:
    texts = series.cast(pl.String)
    numbers = texts.replace_strict(SPLITS, range(len(SPLITS)), default=None, return_dtype=pl.Int8)
    if numbers.null_count():
        row = int(numbers.is_null().arg_max() or 0)
        raise SplitInvalid(f"{place}: column {series.name!r} row {row}", found=texts[row], expected=", ".join(SPLITS))
    return numbers.to_numpy()


def _by_time(split: TimeSplit, name: str, dtype: pl.DataType) -> Assign:
    def bound(value: TimeValue | None) -> pl.Expr | None:
        return None if value is None else pl.lit(_as(value, dtype, name), dtype=dtype)

    column = pl.col(name)
    validation_from, test_from = bound(split.validation_from), bound(split.test_from)
    assert validation_from is not None and test_from is not None
    number = (column >= validation_from).cast(pl.Int8) + (column >= test_from).cast(pl.Int8)
    if (first := bound(split.train_from)) is not None:
        number = pl.when(column < first).then(LEFT_OUT).otherwise(number)
    if (last := bound(split.test_until)) is not None:
        number = pl.when(column > last).then(LEFT_OUT).otherwise(number)

    def assign(frame: pl.DataFrame, place: str) -> NDArray[np.int8]:
        series = frame.get_column(name)
        if series.null_count():
            row = int(series.is_null().arg_max() or 0)
            raise SplitInvalid(f"{place}: column {name!r} row {row}", found="null", expected=f"a {dtype}")
        return frame.select(number.cast(pl.Int8).alias("split")).to_series().to_numpy()

    return assign


def _as(value: TimeValue, dtype: pl.DataType, name: str) -> object:
    """Return a bound as a value of the column's type."""
    wrong = ColumnTypeWrong(f"split column {name!r}", found=str(dtype), expected=f"a type comparable with {value!r}")
    if dtype.is_numeric():
        if isinstance(value, int | float):
            return value
        raise wrong
    if dtype == pl.String and isinstance(value, str):
        return value
    if dtype in (pl.Date, pl.Datetime):
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            raise wrong from None
        if dtype == pl.Date:
            return moment.date()
        zone = getattr(dtype, "time_zone", None)
        return moment.replace(tzinfo=datetime.UTC) if zone and moment.tzinfo is None else moment
    raise wrong
