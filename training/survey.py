"""The first pass over a source's rows: what must be known of all of them before any can be encoded.

Checks labels, counts splits, fits the encodings on the training rows. Knows nothing of how rows are written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from bundle.features import FeatureSchema
from training.columns import clean, with_value_types
from training.dataset import PreparedTask, SplitInfo
from training.errors import SplitInvalid, TaskDegenerate
from training.fit import SchemaFitter
from training.labels import read_dwell, read_labels
from training.schema import SPLITS, DatasetSchema
from training.shards import Shards
from training.splits import TRAIN, split_assigner

Progress = Callable[[str, int, int], None]
"""Called with the stage, rows done and rows in all."""


class Survey(BaseModel):
    """What the first pass found; kept as JSON, so that it need not be made again.

    Attributes:
        total: rows of all splits and of none.
        sizes: rows of each split.
        tasks: with their base rates in the training rows.
        splits: rows and bounds of each split, by name.
        missing: share of training rows without a value, by feature; only features with any.
        features: the fitted schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: int
    sizes: tuple[int, ...]
    tasks: tuple[PreparedTask, ...]
    splits: dict[str, SplitInfo]
    missing: dict[str, float]
    features: FeatureSchema


def survey(schema: DatasetSchema, shards: Shards, progress: Progress) -> Survey:
    """Return what all rows hold, read once.

    Raises:
        SplitInvalid, TaskDegenerate, LabelInvalid, ColumnTypeWrong, SourceUnreadable: see `training.errors`.
    """
    counts = _Counts(schema, shards, progress)
    return Survey(
        total=counts.total,
        sizes=tuple(counts.rows),
        tasks=counts.tasks(),
        splits=counts.splits(),
        missing=counts.missing(),
        features=counts.fitter.fitted(),
    )


class _Counts:
    """Counts of the rows read so far."""

    def __init__(self, schema: DatasetSchema, shards: Shards, progress: Progress) -> None:
        """Read all rows once."""
        self.schema = schema
        self.total = 0
        self.rows = [0] * len(SPLITS)
        self._positives = [[0] * len(schema.tasks) for _ in SPLITS]
        self._bounds: list[tuple[object, object] | None] = [None] * len(SPLITS)
        self._missing = dict.fromkeys((feature.name for feature in schema.features), 0)
        self.fitter = SchemaFitter(with_value_types(schema.feature_schema, shards.columns, shards.names[0]))
        total = shards.rows
        assign = split_assigner(schema, shards.columns)
        for name, first, frame in shards.chunks(tuple(schema.wanted_columns)):
            self._add(frame, assign(frame, name), name, first)
            progress("survey", self.total, total)
        self._check()

    def _add(self, frame: pl.DataFrame, numbers: NDArray[np.int8], name: str, first: int) -> None:
        split = pl.Series("split", numbers, dtype=pl.Int8)
        labels = read_labels(frame, self.schema.tasks, name, first)
        if self.schema.dwell is not None:
            read_dwell(frame, self.schema.dwell, name, first)  # refuses what cannot be one
        column = self.schema.columns.time or self.schema.split_column
        for number in range(len(SPLITS)):
            inside = split == number
            if not (rows := int(inside.sum())):
                continue
            self.rows[number] += rows
            for task, positives in enumerate(labels[inside.to_numpy()].sum(axis=0).tolist()):
                self._positives[number][task] += positives
            if column is not None:
                self._widen(number, frame.get_column(column).filter(inside))
        train = clean(frame, self.fitter.schema.features, name, first).filter(split == TRAIN)  # each row is checked
        for name in self._missing:
            self._missing[name] += train.get_column(name).null_count()
        self.fitter.add(train)
        self.total += len(frame)

    def _widen(self, number: int, series: pl.Series) -> None:
        known = self._bounds[number] or (series.min(), series.max())
        bounds = pl.Series([*known, series.min(), series.max()], dtype=series.dtype)
        self._bounds[number] = (bounds.min(), bounds.max())

    def _check(self) -> None:
        for number, name in enumerate(SPLITS):
            if not self.rows[number]:
                raise SplitInvalid(f"split {name!r}", found=f"no rows of {self.total}", expected="at least one row")
        for task, positives in zip(self.schema.tasks, self._positives[TRAIN], strict=True):
            if not task.held_out and positives in (0, self.rows[TRAIN]):
                found = f"{positives} positives in {self.rows[TRAIN]} training rows"
                raise TaskDegenerate(f"task {task.name!r} (label {task.label!r})", found=found, expected="both classes")

    def tasks(self) -> tuple[PreparedTask, ...]:
        """Return the tasks with their base rates."""
        rates = [positives / self.rows[TRAIN] for positives in self._positives[TRAIN]]
        return tuple(
            PreparedTask(name=t.name, label=t.label, kind=t.kind, held_out=t.held_out, base_rate=rate)
            for t, rate in zip(self.schema.tasks, rates, strict=True)
        )

    def splits(self) -> dict[str, SplitInfo]:
        """Return rows and bounds of each split."""
        infos = {}
        for name, rows, bounds in zip(SPLITS, self.rows, self._bounds, strict=True):
            first, last = (None, None) if bounds is None else (str(bounds[0]), str(bounds[1]))
            infos[name] = SplitInfo(rows=rows, first=first, last=last)
        return infos

    def missing(self) -> dict[str, float]:
        """Return the share of training rows without a value, by feature; only features with any."""
        return {name: count / self.rows[TRAIN] for name, count in self._missing.items() if count}
