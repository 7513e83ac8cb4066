"""Ali-CCP in its official raw layout → rows with user fields joined to them, streamed: memory does not grow with rows.

Files of the folder: sample_skeleton_{train,test}.csv and common_features_{train,test}.csv. The common features become
a table on disk, then each share of a skeleton becomes a Parquet file; what a killed attempt has finished is taken as
it is. Columns of the rows: click, buy, user, split, and `f_<field>` for each feature of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.errors import ColumnMissing, LineInvalid, SourceMissing
from training.schema import DatasetSchema, read_dataset_schema
from training.shards import CHUNK_ROWS, Shards, open_shards
from training.sources.aliccp_common import MISSING, CommonTable, write_common
from training.sources.aliccp_fields import ABSENT, Field, wanted_fields
from training.sources.aliccp_lines import SKELETON, Lines, parse_lines, read_pieces

DEFAULT_SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "aliccp.yaml"
PARTS = ("train", "test")
VALIDATION_SHARE = 0.05
"""Share of the training file's users whose rows validate."""
SHARD_BYTES = 256 << 20
"""Skeleton text per staged file: what is lost at most by a kill."""
_USER = Field("f_101", 0)
_SPLIT_MIX = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class AliCcpSource:
    """The official files in a folder; see `training.sources.source.Source` for the attributes."""

    input: Path
    schema: DatasetSchema
    schema_path: Path
    name: str = "aliccp"
    version: int = 1

    def files(self) -> tuple[Path, ...]:
        """Return the four files.

        Raises:
            SourceMissing: one of them is not there.
        """
        names = [f"{kind}_{part}.csv" for part in PARTS for kind in ("sample_skeleton", "common_features")]
        for name in names:
            if not (self.input / name).is_file():
                expected = "the four raw files of Ali-CCP in one folder"
                raise SourceMissing(str(self.input / name), found="no such file", expected=expected)
        return tuple(self.input / name for name in names)

    def stage(self, folder: Path) -> tuple[Shards, int]:
        """Return the joined rows, and how many were dropped as bought without a click."""
        self.files()
        staged = [path for part in PARTS for path in _Part(self, part, folder).stage()]
        facts = [_facts(path) for path in staged]
        for name in _columns(self.schema, self.schema_path):
            if not any(fact[name] for fact in facts):
                raise ColumnMissing(
                    f"{self.input}: field {name!r}", found="in no line", expected="a field of the side that it is of"
                )
        return open_shards(staged), sum(fact["dropped"] for fact in facts)


def open_aliccp(folder: Path, schema_path: Path | None = None, split_path: Path | None = None) -> AliCcpSource:
    """Return the Ali-CCP source; without `schema_path` the shipped schema serves.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    schema_path = schema_path or DEFAULT_SCHEMA
    source = AliCcpSource(folder, read_dataset_schema(schema_path, split_path), schema_path)
    _columns(source.schema, schema_path)
    source.files()
    return source


class _Part:
    """The train or the test half of the input."""

    def __init__(self, source: AliCcpSource, part: str, folder: Path) -> None:
        features = source.schema.feature_schema
        user = wanted_fields(features.of_side("user"), source.schema_path)
        self.user_fields = user if _USER in user else (*user, _USER)
        self.row_fields = wanted_fields(features.of_side("item", "context"), source.schema_path)
        self.part, self.folder = part, folder
        self.skeleton = source.input / f"sample_skeleton_{part}.csv"
        self.common = source.input / f"common_features_{part}.csv"

    def stage(self) -> list[Path]:
        """Return the staged files, writing those that are not there."""
        size = self.skeleton.stat().st_size
        bounds = [(start, min(start + SHARD_BYTES, size)) for start in range(0, size, SHARD_BYTES)]
        paths = [self.folder / f"{self.part}-{number:05d}.parquet" for number in range(len(bounds))]
        if any(not path.exists() for path in paths):
            table_folder = self.folder / f"common-{self.part}"
            if not table_folder.exists():
                write_common(self.common, self.user_fields, table_folder)
            table = CommonTable(table_folder, self.common, self.user_fields)
            first_line = 1
            for path, (start, end) in zip(paths, bounds, strict=True):
                if not path.exists():
                    self._write(path, start, end, table, first_line)
                first_line += _facts(path)["lines"]
        return paths

    def _write(self, path: Path, start: int, end: int, table: CommonTable, first_line: int) -> None:
        """Write the rows of the skeleton's lines that begin in bytes [start, end)."""
        aside, facts = path.with_suffix(".part"), {"lines": 0, "dropped": 0}
        writer: pq.ParquetWriter | None = None
        for rows in _gathered(self._pieces(start, end, table, first_line, facts)):
            writer = writer or pq.ParquetWriter(aside, rows.schema)
            writer.write_table(rows)
        if writer is None:
            writer = pq.ParquetWriter(aside, pa.schema({}))
        writer.add_key_value_metadata({name: str(value) for name, value in facts.items()})
        writer.close()
        aside.rename(path)

    def _pieces(
        self, start: int, end: int, table: CommonTable, first_line: int, facts: dict[str, int]
    ) -> Iterator[pa.Table]:
        """Yield the rows of the skeleton's lines that begin in bytes [start, end), and count them in `facts`."""
        for piece in read_pieces(self.skeleton, start, end):
            lines = parse_lines(piece, SKELETON, self.skeleton, first_line + facts["lines"])
            rows = self._rows(lines, table, first_line + facts["lines"])
            kept_L = lines.labels[:, 0] | ~lines.labels[:, 1]
            facts["lines"] += len(kept_L)
            facts["dropped"] += int(np.count_nonzero(~kept_L))
            for field in (*self.user_fields, *self.row_fields):
                facts[field.column] = facts.get(field.column, 0) + _given(rows.column(field.column))
            yield rows if kept_L.all() else rows.filter(pa.array(kept_L))

    def _rows(self, lines: Lines, table: CommonTable, first_line: int) -> pa.Table:
        at_L = table.lines_of(lines.index)
        if (at_L == MISSING).any():
            line = int(np.argmax(at_L == MISSING))
            index = lines.index[line].tobytes().rstrip(b"\0").decode("utf-8", "replace")
            place = f"{self.skeleton}: line {first_line + line}: common_feature_index"
            raise LineInvalid(place, found=index, expected=f"one of {self.common.name}")
        user_L = table.ids(_USER, at_L)[:, 0]
        user_L = np.where(user_L == ABSENT, -2 - at_L, user_L)
        columns = {
            "click": pa.array(lines.labels[:, 0].astype(np.int8)),
            "buy": pa.array(lines.labels[:, 1].astype(np.int8)),
            "user": pa.array(user_L),
            "split": self._split(user_L),
        }
        columns |= {field.column: field.column_of(table.ids(field, at_L)) for field in self.user_fields}
        columns |= {field.column: field.column_of(field.ids(lines, len(at_L))) for field in self.row_fields}
        return pa.table(columns)

    def _split(self, user_L: NDArray[np.int64]) -> pa.Array:
        if self.part == "test":
            return pa.array(np.full(len(user_L), "test"))
        mixed_L = user_L.astype(np.uint64) * _SPLIT_MIX
        mixed_L = (mixed_L ^ (mixed_L >> np.uint64(32))) * _SPLIT_MIX
        share_L = (mixed_L >> np.uint64(40)).astype(np.float64) / 2**24
        return pa.array(np.where(share_L < VALIDATION_SHARE, "validation", "train"))


def _columns(schema: DatasetSchema, schema_path: Path) -> Sequence[str]:
    return [field.column for field in wanted_fields(schema.features, schema_path)]


def _gathered(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of pieces in tables of CHUNK_ROWS or a little more; the last may be shorter."""
    waiting: list[pa.Table] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(len(table) for table in waiting) >= CHUNK_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _facts(path: Path) -> dict[str, int]:
    """Return what a staged file counts: lines, dropped rows, rows with each field."""
    metadata = pq.read_metadata(path).metadata
    return {name.decode(): int(value) for name, value in metadata.items() if not name.startswith(b"ARROW")}


def _given(column: pa.ChunkedArray) -> int:
    """Return how many rows have a value."""
    if pa.types.is_list(column.type):
        return len(column.combine_chunks().flatten())
    return int(len(column) - column.null_count)
