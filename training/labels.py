"""Label columns of a table piece → 0/1 matrix, its dwell column → seconds, every cell checked.

Knows nothing of splits or features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import ColumnTypeWrong, LabelInvalid
from training.schema import Dwell, Task


def read_labels(frame: pl.DataFrame, tasks: Sequence[Task], file: str, first_row: int) -> NDArray[np.uint8]:
    """Return labels uint8 [rows, tasks].

    Args:
        frame: holds every task's label column.
        tasks: in the order of the label columns.
        file: for messages.
        first_row: number in the file of the frame's first row, for messages.

    Raises:
        ColumnTypeWrong: a label column that holds no numbers or booleans.
        LabelInvalid: a label that is null, NaN or neither 0 nor 1.
    """
    labels = np.empty((len(frame), len(tasks)), dtype=np.uint8)
    for column, task in enumerate(tasks):
        series = frame.get_column(task.label)
        place = f"{file}: label {task.label!r} of task {task.name!r}"
        if not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null)):
            raise ColumnTypeWrong(place, found=str(series.dtype), expected="0 and 1")
        numbers = series.cast(pl.Float64)
        good = numbers.is_in([0.0, 1.0]).fill_null(False)
        if not good.all():
            row = int((~good).arg_max() or 0)
            raise LabelInvalid(f"{place} row {first_row + row}", found=series[row], expected="0 or 1")
        labels[:, column] = numbers.to_numpy()
    return labels


def read_dwell(frame: pl.DataFrame, dwell: Dwell, file: str, first_row: int) -> NDArray[np.float32]:
    """Return seconds float32 [rows], at most the cap; NaN where the column holds null or NaN.

    Raises:
        ColumnTypeWrong: the column holds no numbers.
        LabelInvalid: a negative or infinite number.
    """
    series = frame.get_column(dwell.column)
    if not (series.dtype.is_numeric() or series.dtype == pl.Null):
        raise ColumnTypeWrong(f"{file}: dwell {dwell.column!r}", found=str(series.dtype), expected="numbers")
    numbers = series.cast(pl.Float64).fill_nan(None)
    bad = ((numbers < 0) | numbers.is_infinite()).fill_null(False)
    if bad.any():
        row = int(bad.arg_max() or 0)
        place = f"{file}: dwell {dwell.column!r} row {first_row + row}"
        raise LabelInvalid(place, found=series[row], expected="0 or more, or nothing")
    seconds = numbers.to_numpy() / (1000 if dwell.unit == "ms" else 1)
    return np.minimum(seconds, dwell.cap_s).astype(np.float32)
