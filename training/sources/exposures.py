"""KuaiRand-Pure's history exposures as rows of their own, to pre-train on: what came before the log begins.

Files of the folder (or of its `data/`): history_exposures_before_0425.parquet, user_features_pure.csv and
video_features_basic_pure.csv. The exposures have no time and two outcomes, long_view and is_like; their rows have
profile features only, since all history that could be counted is of rows among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.errors import SourceMissing, SourceUnreadable
from training.schema import DatasetSchema, read_dataset_schema
from training.shards import Shards, open_shards
from training.sources.kuairand import EXPOSURES_FILE, USER_FILE, VIDEO_FILE, read_exposures, read_users, read_videos

DEFAULT_SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "kuairand-exposures.yaml"


@dataclass(frozen=True)
class KuaiRandExposures:
    """The exposures in a folder; see `training.sources.source.Source` for the attributes."""

    input: Path
    schema: DatasetSchema
    schema_path: Path
    name: str = "kuairand-exposures"
    version: int = 1

    def files(self) -> tuple[Path, ...]:
        """Return the files that are read, in a fixed order.

        Raises:
            SourceMissing: one of them is not there.
        """
        folder = self.input / "data" if (self.input / "data").is_dir() else self.input
        files = tuple(folder / name for name in (EXPOSURES_FILE, USER_FILE, VIDEO_FILE))
        for path in files:
            if not path.is_file():
                raise SourceMissing(str(path), found="no such file", expected="a file of KuaiRand-Pure")
        return files

    def stage(self, folder: Path) -> tuple[Shards, int]:
        """Return the exposures with the profiles of user and video."""
        exposures, users, videos = self.files()
        try:
            rows = (
                read_exposures(exposures)
                .join(read_videos(videos), on="video_id", how="left", maintain_order="left")
                .join(read_users(users), on="user_id", how="left", maintain_order="left")
            )
        except pl.exceptions.PolarsError as exc:
            reason = " ".join(str(exc).split())[:160]
            raise SourceUnreadable(str(self.input), found=reason, expected="values of the official layout") from None
        path = folder / "rows.parquet"
        rows.write_parquet(path)
        return open_shards([path], given=[self.input]), 0


def open_kuairand_exposures(
    folder: Path, schema_path: Path | None = None, split_path: Path | None = None
) -> KuaiRandExposures:
    """Return the exposures as a source; without `schema_path` the shipped schema serves.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    schema_path = schema_path or DEFAULT_SCHEMA
    source = KuaiRandExposures(folder, read_dataset_schema(schema_path, split_path), schema_path)
    source.files()
    return source
