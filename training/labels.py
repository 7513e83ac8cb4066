"""Label columns of a table piece → 0/1 matrix, every cell checked. Knows nothing of splits or features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import ColumnTypeWrong, LabelInvalid
from training.schema import Task


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
