"""A stranger's table: one Parquet or CSV file, a folder of Parquet files or a glob of them."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bundle.features import CategoricalListFeature, FeatureSchema, NumericFeature
from training.errors import SourceEmpty, SourceMissing, SourceUnreadable
from training.schema import DatasetSchema, read_dataset_schema
from training.shards import Shards, open_shards


@dataclass(frozen=True)
class TableSource:
    """Rows as they stand in a table; see `training.sources.source.Source` for the attributes."""

    input: Path
    schema: DatasetSchema
    schema_path: Path
    name: str = "table"
    version: int = 1

    def files(self) -> tuple[Path, ...]:
        """Return the table's files in name order.

        Raises:
            SourceMissing: there are none.
        """
        return table_files(self.input)

    def stage(self, folder: Path) -> tuple[Shards, int]:
        """Return the rows; a CSV file is turned into Parquet in `folder` first."""
        files = self.files()
        staged = [
            _staged_once(path, folder / f"{number:05d}.parquet", self.schema)
            if path.suffix.lower() in (".csv", ".tsv")
            else path
            for number, path in enumerate(files)
        ]
        return open_shards(staged, given=files), 0


def open_table(path: Path, schema_path: Path, split_path: Path | None = None) -> TableSource:
    """Return a table source.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    source = TableSource(path, read_dataset_schema(schema_path, split_path), schema_path)
    source.files()
    return source


def table_files(path: Path) -> tuple[Path, ...]:
    """Return a file, the Parquet files of a folder, or the files that a glob pattern matches, in name order.

    Raises:
        SourceMissing: there are none.
    """
    if path.is_file():
        return (path,)
    if path.is_dir():
        files = tuple(sorted(path.glob("*.parquet")))
        expected = "*.parquet files in the folder"
    else:
        files = tuple(sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()))  # noqa: PTH207 (absolute patterns)
        expected = "a Parquet or CSV file, a folder of Parquet files, or a glob"
    if not files:
        raise SourceMissing(str(path), found="no such file", expected=expected)
    return files


def _staged_once(path: Path, staged: Path, schema: DatasetSchema) -> Path:
    """Return the copy of a CSV file, the one that is there if an earlier attempt made it."""
    return staged if staged.exists() else stage_csv(path, staged, schema)


def stage_csv(path: Path, staged: Path, schema: DatasetSchema | FeatureSchema, texts: Sequence[str] = ()) -> Path:
    """Return `staged`, a Parquet copy of a CSV file with the types that the schema asks for; `texts` stay strings.

    Raises:
        SourceEmpty, SourceUnreadable: the file is empty or does not parse.
    """
    overrides: dict[str, type[pl.DataType]] = dict.fromkeys(texts, pl.String)
    for feature in schema.features:
        if isinstance(feature, NumericFeature):
            overrides[feature.name] = pl.Float64
        elif isinstance(feature, CategoricalListFeature) or feature.value_type == "string":
            overrides[feature.name] = pl.String
    try:
        frame = pl.scan_csv(
            path,
            separator="\t" if path.suffix.lower() == ".tsv" else ",",
            schema_overrides=overrides,
            infer_schema_length=None,
            try_parse_dates=True,
        )
        aside = staged.with_suffix(".part")
        frame.sink_parquet(aside)
        aside.rename(staged)
    except pl.exceptions.NoDataError:
        raise SourceEmpty(str(path), found="an empty file", expected="a header and rows") from None
    except (pl.exceptions.PolarsError, OSError) as exc:
        reason = re.split(r"The current offset|Consider setting", " ".join(str(exc).split()))[0].strip(" .")[:160]
        raise SourceUnreadable(str(path), found=reason, expected="a CSV file with a header") from None
    return staged
