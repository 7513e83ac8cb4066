"""A prepared folder, read: encoded columns as memory-mapped arrays, beside the fitted schema.

Layout (written by `training.prepare`): prepared.json, features.json, schema.yaml, and per split a folder with
codes.npy int32 [rows, request + item code columns], values.npy float32 [rows, request + item value columns],
labels.npy uint8 [rows, tasks], user.npy int64 [rows] (absent without a user column), dwell.npy float32 [rows] (absent
where the schema names no dwell); rows.parquet with the raw features for validation and test. Knows nothing of sources,
models or torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.encode import SchemaEncoder
from bundle.features import FeatureSchema, read_schema
from training.errors import PreparedInvalid
from training.schema import SPLITS, Columns, Dwell

PREPARED_FILE = "prepared.json"
FEATURES_FILE = "features.json"
SCHEMA_FILE = "schema.yaml"
CODES_FILE = "codes.npy"
VALUES_FILE = "values.npy"
LABELS_FILE = "labels.npy"
USER_FILE = "user.npy"
DWELL_FILE = "dwell.npy"
ROWS_FILE = "rows.parquet"
ROW_USER, ROW_ITEM, ROW_TIME = "__user", "__item", "__time"
"""Id columns of rows.parquet; each is there when the schema names one."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreparedTask(_Model):
    """One task of the prepared labels; `base_rate` is the share of positives in the training rows."""

    name: str
    label: str
    kind: str
    held_out: bool
    base_rate: float


class SplitInfo(_Model):
    """Rows of one split, and the first and last value (`from`, `to`) of the column it is split by."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    rows: int
    first: str | None = Field(default=None, alias="from")
    last: str | None = Field(default=None, alias="to")


class PreparedInfo(_Model):
    """The whole of prepared.json.

    Attributes:
        source: which reader made it.
        input: what it read.
        columns: id columns of the source.
        tasks: in the order of the label columns.
        dwell: where the seconds of dwell.npy come from; None: there is no such file.
        splits: train, validation and test.
        left_out: rows outside every split (before train_from, after test_until).
        dropped: rows that the source dropped as repeated.
        missing: share of training rows without a value, by feature; only features with any.
        fingerprint: digest of the input files, the schema and the preparing code's version.
        schema_file: name of the dataset schema it was made with.
    """

    version: int = 1
    source: str
    input: str
    columns: Columns
    tasks: tuple[PreparedTask, ...]
    dwell: Dwell | None = Field(default=None, exclude_if=lambda dwell: dwell is None)
    splits: dict[str, SplitInfo]
    left_out: int = 0
    dropped: int = 0
    missing: dict[str, float] = {}
    fingerprint: str
    schema_file: str


@dataclass(frozen=True)
class Split:
    """One split's arrays, memory-mapped and read-only.

    Attributes:
        codes: int32 [rows, code columns], request part then item part.
        values: float32 [rows, value columns], request part then item part.
        labels: uint8 [rows, tasks], all tasks, held-out ones too.
        user: int64 [rows], equal for rows of one user; None without a user column.
        dwell: float32 [rows], seconds, NaN where not known; None where the schema names no dwell.
    """

    codes: NDArray[np.int32]
    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    user: NDArray[np.int64] | None
    dwell: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)


@dataclass(frozen=True)
class Prepared:
    """A prepared folder.

    Attributes:
        folder: where it lies.
        info: its prepared.json.
        schema: its fitted features.json.
        encoder: the encoder of that schema.
    """

    folder: Path
    info: PreparedInfo
    schema: FeatureSchema
    encoder: SchemaEncoder

    @property
    def tasks(self) -> tuple[PreparedTask, ...]:
        """All tasks, in the order of the label columns."""
        return self.info.tasks

    @property
    def request_code_columns(self) -> int:
        """Number of leading code columns that belong to the request part."""
        return self.encoder.request.code_columns

    @property
    def request_value_columns(self) -> int:
        """Number of leading value columns that belong to the request part."""
        return self.encoder.request.value_columns

    def split(self, name: str) -> Split:
        """Return the arrays of train, validation or test.

        Raises:
            PreparedInvalid: an unknown split, or an array that is missing, cut short or of another shape.
        """
        if name not in self.info.splits:
            raise PreparedInvalid(f"{self.folder}: split {name!r}", found="no such split", expected=", ".join(SPLITS))
        folder, rows = self.folder / name, self.info.splits[name].rows
        request, item = self.encoder.request, self.encoder.item
        codes = _array(folder / CODES_FILE, np.int32, (rows, request.code_columns + item.code_columns))
        values = _array(folder / VALUES_FILE, np.float32, (rows, request.value_columns + item.value_columns))
        labels = _array(folder / LABELS_FILE, np.uint8, (rows, len(self.tasks)))
        user = _array(folder / USER_FILE, np.int64, (rows,)) if self.info.columns.user else None
        dwell = _array(folder / DWELL_FILE, np.float32, (rows,)) if self.info.dwell else None
        return Split(codes, values, labels, user, dwell)

    def rows_path(self, name: str) -> Path:
        """Return the path of a split's raw rows.

        Raises:
            PreparedInvalid: the split keeps no raw rows (train does not).
        """
        path = self.folder / name / ROWS_FILE
        if not path.is_file():
            raise PreparedInvalid(str(path), found="no such file", expected="the rows of validation or test")
        return path


def read_prepared(folder: Path) -> Prepared:
    """Return a prepared folder; its arrays are opened by `Prepared.split`.

    Raises:
        PreparedInvalid: prepared.json is missing, does not parse or is of another version.
        bundle.errors.SchemaInvalid: features.json is not a fitted schema.
    """
    path = folder / PREPARED_FILE
    try:
        info = PreparedInfo.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise PreparedInvalid(str(path), found=exc.strerror, expected="a folder made by `dlen prepare`") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise PreparedInvalid(f"{path}: {place}", found=repr(first["input"])[:80], expected=first["msg"]) from None
    if info.version != 1:
        raise PreparedInvalid(f"{path}: version", found=info.version, expected=1)
    schema = read_schema(folder / FEATURES_FILE)
    return Prepared(folder, info, schema, SchemaEncoder(schema))


def prepared_bytes(info: PreparedInfo) -> bytes:
    """Return the content of prepared.json."""
    return json.dumps(info.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False).encode() + b"\n"


def _array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise PreparedInvalid(str(path), found=str(exc)[:160], expected=f"{np.dtype(dtype)}{list(shape)}") from exc
    if array.dtype != dtype or array.shape != shape:
        raise PreparedInvalid(
            str(path), found=f"{array.dtype}{list(array.shape)}", expected=f"{np.dtype(dtype)}{list(shape)}"
        )
    return array
