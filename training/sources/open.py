"""A source by its name on the command line."""

from __future__ import annotations

from pathlib import Path

from training.errors import DatasetSchemaInvalid
from training.sources.aliccp import open_aliccp
from training.sources.exposures import open_kuairand_exposures
from training.sources.kuairand import open_kuairand
from training.sources.simulator import open_simulator
from training.sources.source import Source
from training.sources.table import open_table


def open_source(name: str, path: Path, schema_path: Path | None, split_path: Path | None = None) -> Source:
    """Return the source of a layout.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    if name == "kuairand":
        return open_kuairand(path, schema_path, split_path)
    if name == "kuairand-exposures":
        return open_kuairand_exposures(path, schema_path, split_path)
    if name == "aliccp":
        return open_aliccp(path, schema_path, split_path)
    if name == "simulator":
        return open_simulator(path, schema_path, split_path)
    if schema_path is None:
        raise DatasetSchemaInvalid("--schema", found="nothing", expected=f"a dataset schema file for source {name!r}")
    return open_table(path, schema_path, split_path)
