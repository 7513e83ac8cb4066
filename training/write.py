"""Encoded pieces of a table, written to one folder per split. See `training.dataset` for the layout."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bundle.encode import SchemaEncoder
from bundle.files import write_file
from training.columns import clean, typed_columns
from training.dataset import (
    CODES_FILE,
    DWELL_FILE,
    LABELS_FILE,
    ROW_ITEM,
    ROW_TIME,
    ROW_USER,
    ROWS_FILE,
    USER_FILE,
    VALUES_FILE,
)
from training.errors import ColumnTypeWrong
from training.labels import read_dwell, read_labels
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
    """Writers of the three splits. No file stays open between two pieces."""

    def __init__(
        self, folder: Path, staging: Path, schema: DatasetSchema, encoder: SchemaEncoder, sizes: Sequence[int]
    ) -> None:
        """Take each split's number of rows, and a folder for what is needed in between; nothing is written yet."""
        self._users, self._schema = UserNumbers(), schema
        self._splits = [
            _SplitWriter(folder / name, None if number == TRAIN else staging, schema, encoder, rows)
            for number, (name, rows) in enumerate(zip(SPLITS, sizes, strict=True))
        ]

    def resume(self, path: Path) -> int:
        """Return how many source files were noted at `path` as written, 0 without it; cut off what came after."""
        noted: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"files": 0}
        for split, position in zip(self._splits, noted.get("splits", [(0, 0)] * len(SPLITS)), strict=True):
            split.start(position)
        return int(noted["files"])

    def note(self, path: Path, files: int) -> None:
        """Note at `path` that so many source files are written."""
        positions = [split.position for split in self._splits]
        write_file(path, json.dumps({"files": files, "splits": positions}).encode())

    def write(self, frame: pl.DataFrame, numbers: NDArray[np.int8], place: str) -> None:
        """Encode the rows of a piece and append each to its split's arrays."""
        for number, split in enumerate(self._splits):
            inside = numbers == number
            if inside.any():
                split.append(frame.filter(pl.Series(inside)), self._users, place)

    def skip(self, frame: pl.DataFrame, numbers: NDArray[np.int8], place: str) -> None:
        """Number the users of a piece that was written before."""
        if self._schema.columns.user is None:
            return
        for number in range(len(SPLITS)):
            inside = numbers == number
            if inside.any():
                self._users.of(frame.get_column(self._schema.columns.user).filter(pl.Series(inside)), place)

    def finish(self) -> None:
        """Join what was written in parts."""
        for split in self._splits:
            split.finish()


class _SplitWriter:
    def __init__(
        self, folder: Path, staging: Path | None, schema: DatasetSchema, encoder: SchemaEncoder, rows: int
    ) -> None:
        self._folder, self._staging, self._schema, self._encoder = folder, staging, schema, encoder
        self._rows = self._parts = 0
        request, item = encoder.request, encoder.item
        self._codes = ArrayFile(folder / CODES_FILE, np.int32, (rows, request.code_columns + item.code_columns))
        self._values = ArrayFile(folder / VALUES_FILE, np.float32, (rows, request.value_columns + item.value_columns))
        self._labels = ArrayFile(folder / LABELS_FILE, np.uint8, (rows, len(schema.tasks)))
        self._user = ArrayFile(folder / USER_FILE, np.int64, (rows,)) if schema.columns.user else None
        self._dwell = ArrayFile(folder / DWELL_FILE, np.float32, (rows,)) if schema.dwell else None

    @property
    def position(self) -> tuple[int, int]:
        """How many rows, and how many parts of the raw rows, are written."""
        return self._rows, self._parts

    def start(self, position: tuple[int, int]) -> None:
        """Start where an earlier attempt stood."""
        self._folder.mkdir(exist_ok=True)
        self._rows, self._parts = position
        for array in (self._codes, self._values, self._labels, self._user, self._dwell):
            if array is not None:
                array.start(self._rows)

    def append(self, frame: pl.DataFrame, users: UserNumbers, place: str) -> None:
        """Encode and write rows at the end of the split."""
        schema, encoder = self._schema, self._encoder
        cleaned = clean(frame, encoder.schema.features, place, 0)
        request = encoder.request.encode(typed_columns(cleaned, encoder.schema.request_part), len(frame))
        item = encoder.item.encode(typed_columns(cleaned, encoder.schema.item_part), len(frame))
        self._codes.append(np.concatenate([request.codes_NC, item.codes_NC], axis=1))
        self._values.append(np.concatenate([request.values_NV, item.values_NV], axis=1))
        self._labels.append(read_labels(frame, schema.tasks, place, 0))
        if self._user is not None and schema.columns.user is not None:
            self._user.append(users.of(frame.get_column(schema.columns.user), place))
        if self._dwell is not None and schema.dwell is not None:
            self._dwell.append(read_dwell(frame, schema.dwell, place, 0))
        if self._staging is not None:
            self._keep(frame, cleaned, self._part(self._staging, self._parts))
            self._parts += 1
        self._rows += len(frame)

    def _keep(self, frame: pl.DataFrame, cleaned: pl.DataFrame, part: Path) -> None:
        """Write the raw feature and id columns as a part of rows.parquet."""
        columns = self._schema.columns
        ids = [
            frame.get_column(name).alias(kept)
            for kept, name in ((ROW_USER, columns.user), (ROW_ITEM, columns.item), (ROW_TIME, columns.time))
            if name is not None
        ]
        pq.write_table(cleaned.with_columns(ids).to_arrow(), part, compression="zstd")

    def finish(self) -> None:
        """Join the parts of rows.parquet."""
        if self._staging is None or not self._parts:
            return
        parts = [self._part(self._staging, number) for number in range(self._parts)]
        with pq.ParquetWriter(self._folder / ROWS_FILE, pq.read_schema(parts[0]), compression="zstd") as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))

    def _part(self, staging: Path, number: int) -> Path:
        return staging / f"rows-{self._folder.name}-{number:06d}.parquet"


class ArrayFile:
    """An .npy file of a known shape, written row after row: a full disk is an error here, not a fault later."""

    def __init__(self, path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        """Take what the header will say; nothing is written yet."""
        self._path, self._dtype, self._shape = path, np.dtype(dtype), shape

    def start(self, rows: int) -> None:
        """Keep the first `rows` rows that are there, and let the next ones follow; 0 starts a new file."""
        with self._path.open("r+b" if rows else "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + rows * self._dtype.itemsize * math.prod(self._shape[1:]))

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows of the array's type and width."""
        assert rows.dtype == self._dtype and rows.shape[1:] == self._shape[1:]
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows).data)
