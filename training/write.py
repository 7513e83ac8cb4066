"""Encoded pieces of a table, written to one folder per split. See `training.dataset` for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bundle.encode import SchemaEncoder
from bundle.features import Feature
from training.columns import clean, typed_columns
from training.dataset import (
    CODES_FILE,
    LABELS_FILE,
    ROW_ITEM,
    ROW_TIME,
    ROW_USER,
    ROWS_FILE,
    USER_FILE,
    VALUES_FILE,
)
from training.errors import ColumnTypeWrong
from training.labels import read_labels
from training.schema import SPLITS, DatasetSchema
from training.splits import TRAIN


class UserNumbers:
    """Equal numbers for rows of one user: integer ids are themselves, others are numbered as they appear."""

    def __init__(self) -> None:
        """Start with no users."""
        self._known: dict[str, int] = {}

    def of(self, series: pl.Series, place: str) -> NDArray[np.int64]:
        """Return int64 [rows].

        Raises:
            ColumnTypeWrong: a null, or a type that cannot be an id.
        """
        if series.null_count():
            raise ColumnTypeWrong(f"{place}: user column {series.name!r}", found="null", expected="an id in every row")
        if series.dtype.is_integer():
            return series.cast(pl.Int64).to_numpy()
        if series.dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise ColumnTypeWrong(
                f"{place}: user column {series.name!r}", found=str(series.dtype), expected="integers or strings"
            )
        known = self._known
        texts = series.cast(pl.String).to_list()
        return np.fromiter((known.setdefault(text, len(known)) for text in texts), np.int64, len(texts))


class SplitWriters:
    """Writers of the three splits; use as a context."""

    def __init__(self, folder: Path, schema: DatasetSchema, encoder: SchemaEncoder, sizes: Sequence[int]) -> None:
        """Create each split's arrays with its number of rows."""
        self._schema, self._encoder, self._users = schema, encoder, UserNumbers()
        self._features: tuple[Feature, ...] = encoder.schema.features
        self._splits = [
            _SplitWriter(folder / name, schema, encoder, rows, keeps_rows=number != TRAIN)
            for number, (name, rows) in enumerate(zip(SPLITS, sizes, strict=True))
        ]

    def __enter__(self) -> Self:
        """Return the writers."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Close every file."""
        for split in self._splits:
            split.close()

    def write(self, frame: pl.DataFrame, numbers: NDArray[np.int8], place: str) -> None:
        """Encode the rows of a piece and append each to its split's arrays."""
        for number, split in enumerate(self._splits):
            inside = numbers == number
            if inside.any():
                split.append(frame.filter(pl.Series(inside)), self._users, place)


class _SplitWriter:
    def __init__(
        self, folder: Path, schema: DatasetSchema, encoder: SchemaEncoder, rows: int, *, keeps_rows: bool
    ) -> None:
        folder.mkdir()
        self._schema, self._encoder, self._at = schema, encoder, 0
        request, item = encoder.request, encoder.item
        self._codes = _created(folder / CODES_FILE, np.int32, (rows, request.code_columns + item.code_columns))
        self._values = _created(folder / VALUES_FILE, np.float32, (rows, request.value_columns + item.value_columns))
        self._labels = _created(folder / LABELS_FILE, np.uint8, (rows, len(schema.tasks)))
        self._user = _created(folder / USER_FILE, np.int64, (rows,)) if schema.columns.user else None
        self._rows_path = folder / ROWS_FILE if keeps_rows else None
        self._rows_writer: pq.ParquetWriter | None = None

    def append(self, frame: pl.DataFrame, users: UserNumbers, place: str) -> None:
        """Encode and write rows at the end of the split."""
        start, end = self._at, self._at + len(frame)
        cleaned = clean(frame, self._encoder.schema.features, place)
        request, item = self._encoder.request, self._encoder.item
        for part, features, code_at, value_at in (
            (request, self._encoder.schema.request_part, 0, 0),
            (item, self._encoder.schema.item_part, request.code_columns, request.value_columns),
        ):
            encoded = part.encode(typed_columns(cleaned, features), len(frame))
            self._codes[start:end, code_at : code_at + part.code_columns] = encoded.codes_NC
            self._values[start:end, value_at : value_at + part.value_columns] = encoded.values_NV
        self._labels[start:end] = read_labels(frame, self._schema.tasks, place, 0)
        if self._user is not None and self._schema.columns.user is not None:
            self._user[start:end] = users.of(frame.get_column(self._schema.columns.user), place)
        if self._rows_path is not None:
            self._keep(frame, cleaned)
        self._at = end

    def _keep(self, frame: pl.DataFrame, cleaned: pl.DataFrame) -> None:
        """Append the raw feature and id columns to rows.parquet."""
        columns = self._schema.columns
        ids = [
            frame.get_column(name).alias(kept)
            for kept, name in ((ROW_USER, columns.user), (ROW_ITEM, columns.item), (ROW_TIME, columns.time))
            if name is not None
        ]
        table = cleaned.with_columns(ids).to_arrow()
        if self._rows_writer is None:
            self._rows_writer = pq.ParquetWriter(self._rows_path, table.schema, compression="zstd")
        self._rows_writer.write_table(table)

    def close(self) -> None:
        """Flush and close the split's files."""
        if self._rows_writer is not None:
            self._rows_writer.close()
        for array in (self._codes, self._values, self._labels, self._user):
            if isinstance(array, np.memmap):
                array.flush()


def _created(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:
        empty: NDArray[Any] = np.zeros(shape, dtype)
        np.save(path, empty)
        return empty
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
