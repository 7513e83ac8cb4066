"""A source's rows → a prepared folder: split, fitted on training rows, encoded, written as memory-mapped columns.

Two passes over the rows, a bounded piece at a time: the first checks labels, counts splits and fits the
encodings, the second encodes and writes. The folder appears whole or not at all. See `training.dataset` for
the layout. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bundle.encode import SchemaEncoder
from bundle.files import new_folder, sha256_of
from training.columns import clean, with_value_types
from training.dataset import (
    FEATURES_FILE,
    PREPARED_FILE,
    SCHEMA_FILE,
    Prepared,
    PreparedInfo,
    PreparedTask,
    SplitInfo,
    prepared_bytes,
    read_prepared,
)
from training.errors import OutputExists, OutputFailed, SplitInvalid, TaskDegenerate
from training.fit import SchemaFitter
from training.labels import read_labels
from training.schema import SPLITS, DatasetSchema
from training.shards import Shards
from training.sources.source import Source
from training.splits import TRAIN, split_assigner
from training.write import SplitWriters

PREPARE_VERSION = 1
"""Raised whenever the same input would give another prepared folder."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, rows done and rows in all."""


def prepare(
    source: Source, out: Path, *, force: bool = False, progress: Progress | None = None
) -> tuple[Prepared, bool]:
    """Return the prepared folder `out` of a source, and whether it was made now (else it was up to date already).

    Raises:
        TrainingError: bad input, an `out` that was made from something else (without `force`), or a full disk;
            nothing is left behind.
    """
    fingerprint = _fingerprint(source)
    if out.exists() and not force and (found := _existing(out, fingerprint)) is not None:
        return found, False
    try:
        with new_folder(out, replace=force) as folder:
            _write(source, fingerprint, folder, progress or (lambda *_: None))
    except OSError as exc:
        raise OutputFailed(str(out), found=exc.strerror or str(exc), expected="a writable place with room") from exc
    return read_prepared(out), True


def _existing(out: Path, fingerprint: str) -> Prepared | None:
    """Return `out` if it was made from the same input; None if it is an empty folder."""
    if out.is_dir() and not any(out.iterdir()):
        return None
    if not (out / PREPARED_FILE).is_file():
        raise OutputExists(str(out), found="something else than a prepared folder", expected="a new folder")
    prepared = read_prepared(out)
    if prepared.info.fingerprint != fingerprint:
        raise OutputExists(
            str(out), found="a folder prepared from other input", expected="a new folder, or --force to replace it"
        )
    return prepared


def _write(source: Source, fingerprint: str, folder: Path, progress: Progress) -> None:
    staging = folder / "staging"
    staging.mkdir()
    shards, dropped = source.stage(staging)
    shards.check_holds(source.schema.wanted_columns)
    survey = _Survey(source.schema, shards, progress)
    schema = survey.fitter.fitted()
    encoder = SchemaEncoder(schema)
    sizes = [survey.rows[number] for number in range(len(SPLITS))]
    with SplitWriters(folder, source.schema, encoder, sizes) as writers:
        assign = split_assigner(source.schema, shards.columns)
        done = 0
        for name, first, frame in shards.chunks(tuple(source.schema.wanted_columns)):
            writers.write(frame, assign(frame, name), f"{name} from row {first}")
            done += len(frame)
            progress("encode", done, survey.total)
    shutil.rmtree(staging)
    info = PreparedInfo(
        source=source.name,
        input=str(source.input),
        columns=source.schema.columns,
        tasks=survey.tasks(),
        splits=survey.splits(),
        left_out=survey.total - sum(sizes),
        dropped=dropped,
        missing=survey.missing(),
        fingerprint=fingerprint,
        schema_file=source.schema_path.name,
    )
    (folder / FEATURES_FILE).write_text(schema.model_dump_json(indent=1) + "\n", "utf-8")
    (folder / SCHEMA_FILE).write_bytes(source.schema_path.read_bytes())
    (folder / PREPARED_FILE).write_bytes(prepared_bytes(info))


class _Survey:
    """The first pass: what must be known of the rows before any can be encoded."""

    def __init__(self, schema: DatasetSchema, shards: Shards, progress: Progress) -> None:
        """Read all rows once."""
        self.schema = schema
        self.total = 0
        self.rows = [0] * len(SPLITS)
        self._positives = [[0] * len(schema.tasks) for _ in SPLITS]
        self._bounds: list[tuple[object, object] | None] = [None] * len(SPLITS)
        self._missing = dict.fromkeys((feature.name for feature in schema.features), 0)
        self.fitter = SchemaFitter(with_value_types(schema.feature_schema, shards.columns))
        total = shards.rows
        assign = split_assigner(schema, shards.columns)
        for name, first, frame in shards.chunks(tuple(schema.wanted_columns)):
            self._add(frame, assign(frame, name), name, first)
            progress("survey", self.total, total)
        self._check()

    def _add(self, frame: pl.DataFrame, numbers: NDArray[np.int8], name: str, first: int) -> None:
        split = pl.Series("split", numbers, dtype=pl.Int8)
        labels = read_labels(frame, self.schema.tasks, name, first)
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
        train = clean(frame.filter(split == TRAIN), self.fitter.schema.features, f"{name} from row {first}")
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


def _fingerprint(source: Source) -> str:
    """Return the digest of everything that decides what the prepared folder holds."""
    parts = {
        "prepare_version": PREPARE_VERSION,
        "source": f"{source.name} {source.version}",
        "schema": source.schema.model_dump(mode="json"),
        "files": {path.name: sha256_of(path) for path in source.files()},
    }
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
