"""Rows of one or more Parquet files, read a bounded piece at a time. Knows nothing of features or labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import ColumnMissing, SourceEmpty, SourceMissing, SourceUnreadable

CHUNK_ROWS = 131_072
"""Rows held in memory at a time."""


@dataclass(frozen=True)
class Shards:
    """Parquet files read one after another as one table.

    Attributes:
        files: in reading order.
        names: what a person calls each file in messages: the file that was given, not a staged copy of it.
        columns: the types of the first file's columns, which every file must hold.
        rows: in all files together.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    columns: dict[str, pl.DataType]
    rows: int

    def check_holds(self, wanted: dict[str, str]) -> None:
        """Check that every wanted column is in every file.

        Raises:
            ColumnMissing: names the first file that lacks one, and what the column is for.
        """
        for path, called in zip(self.files, self.names, strict=True):
            found = set(_opened(path).schema_arrow.names)
            for name, purpose in wanted.items():
                if name not in found:
                    raise ColumnMissing(
                        f"{called}: column {name!r}", found="no such column", expected=f"{purpose}; {_shown(found)}"
                    )

    def one_by_one(self) -> Iterator[Shards]:
        """Yield each file's rows as shards of their own."""
        for path, called in zip(self.files, self.names, strict=True):
            yield Shards((path,), (called,), self.columns, _opened(path).metadata.num_rows)

    def chunks(self, columns: Sequence[str], rows: int = CHUNK_ROWS) -> Iterator[tuple[str, int, pl.DataFrame]]:
        """Yield each file's rows in order: the file's name, the number of its row that comes first, and the piece.

        Raises:
            SourceUnreadable: a file breaks off or does not decode.
        """
        for path, called in zip(self.files, self.names, strict=True):
            first = 0
            try:
                for batch in _opened(path).iter_batches(batch_size=rows, columns=list(columns)):
                    if not batch.num_rows:
                        continue
                    frame = pl.from_arrow(pa.Table.from_batches([batch]))
                    assert isinstance(frame, pl.DataFrame)
                    yield called, first, frame.select(columns)
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as exc:
                raise _unreadable(path, exc) from exc


def open_shards(files: Sequence[Path], given: Sequence[Path] | None = None) -> Shards:
    """Return the rows of Parquet files as one table; `given` are the files that staged copies stand for.

    Raises:
        SourceMissing, SourceUnreadable, SourceEmpty: see `training.errors`.
    """
    names = tuple(str(path) for path in given or files)
    rows = sum(_opened(path).metadata.num_rows for path in files)
    if rows == 0:
        raise SourceEmpty(names[0] if names else "input", found="no rows", expected="at least one row")
    empty = pl.from_arrow(_opened(files[0]).schema_arrow.empty_table())
    assert isinstance(empty, pl.DataFrame)
    return Shards(tuple(files), names, dict(empty.schema), rows)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as exc:
        raise SourceMissing(str(path), found="no such file", expected="a Parquet file") from exc
    except (pa.ArrowException, OSError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> SourceUnreadable:
    reason = " ".join(str(exc).split())[:160]
    return SourceUnreadable(str(path), found=reason, expected="a whole Parquet file")


def _shown(names: set[str]) -> str:
    shown = sorted(names)[:12]
    more = f" … ({len(names)} in all)" if len(names) > len(shown) else ""
    return f"the table holds {', '.join(shown)}{more}"
