"""The folder that `dlen simulate` writes: impressions.parquet and its schema.yaml. The truth file is never read."""

from __future__ import annotations

from pathlib import Path

from training.errors import SourceMissing
from training.sources.table import TableSource, open_table

IMPRESSIONS_FILE = "impressions.parquet"
SIMULATOR_SCHEMA_FILE = "schema.yaml"


def open_simulator(folder: Path, schema_path: Path | None = None, split_path: Path | None = None) -> TableSource:
    """Return a simulated log as a source; `schema_path` replaces the folder's own schema.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    impressions = folder / IMPRESSIONS_FILE
    if not impressions.is_file():
        raise SourceMissing(str(impressions), found="no such file", expected="a folder made by `dlen simulate`")
    table = open_table(impressions, schema_path or folder / SIMULATOR_SCHEMA_FILE, split_path)
    return TableSource(impressions, table.schema, table.schema_path, name="simulator")
