"""What every source gives: a schema, the files it is made of, and its rows as Parquet shards."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from training.schema import DatasetSchema
from training.shards import Shards


class Source(Protocol):
    """Logs in some layout, opened with a dataset schema."""

    @property
    def name(self) -> str:
        """As in `dlen prepare --source`."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever the same files would give other rows."""
        ...

    @property
    def input(self) -> Path:
        """What was given as `--input`."""
        ...

    @property
    def schema(self) -> DatasetSchema:
        """The dataset schema."""
        ...

    @property
    def schema_path(self) -> Path:
        """The file that the schema was read from."""
        ...

    def files(self) -> tuple[Path, ...]:
        """Return every file that the rows depend on, in a fixed order."""
        ...

    def stage(self, folder: Path) -> tuple[Shards, int]:
        """Return the rows, and how many repeated rows were dropped; `folder` is empty and may hold staged files."""
        ...
