"""A source's rows → a prepared folder: split, fitted on training rows, encoded, written as memory-mapped columns.

Two passes over the rows, a bounded piece at a time: `training.survey` checks and fits, the second encodes and writes.
The folder appears whole or not at all; after a kill, staged files, the survey and encoded files are not made again.
See `training.dataset` for the layout. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from bundle.encode import SchemaEncoder
from bundle.files import resumed_folder, sha256_of, write_file
from training.dataset import (
    FEATURES_FILE,
    PREPARED_FILE,
    SCHEMA_FILE,
    Prepared,
    PreparedInfo,
    prepared_bytes,
    read_prepared,
)
from training.errors import OutputExists, OutputFailed
from training.schema import DatasetSchema
from training.shards import Shards
from training.sources.source import Source
from training.splits import split_assigner
from training.survey import Progress, Survey, survey
from training.write import SplitWriters

PREPARE_VERSION = 1
"""Raised whenever the same input would give another prepared folder."""
_STAGING_FOLDER = "staging"
_SURVEY_FILE = "survey.json"
_ENCODED_FILE = "encoded.json"


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
        with resumed_folder(out, fingerprint, replace=force) as folder:
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
    """Write what a prepared folder holds; what an earlier, killed attempt has finished is taken as it is."""
    staging = folder / _STAGING_FOLDER
    staging.mkdir(exist_ok=True)
    shards, dropped = source.stage(staging)
    shards.check_holds(source.schema.wanted_columns)
    known = _surveyed(source.schema, shards, staging / _SURVEY_FILE, progress)
    _encode(source.schema, shards, known, folder, progress)
    info = PreparedInfo(
        source=source.name,
        input=str(source.input),
        columns=source.schema.columns,
        tasks=known.tasks,
        dwell=source.schema.dwell,
        splits=known.splits,
        left_out=known.total - sum(known.sizes),
        dropped=dropped,
        missing=known.missing,
        fingerprint=fingerprint,
        schema_file=source.schema_path.name,
    )
    shutil.rmtree(staging)
    (folder / FEATURES_FILE).write_text(known.features.model_dump_json(indent=1) + "\n", "utf-8")
    (folder / SCHEMA_FILE).write_bytes(source.schema_path.read_bytes())
    (folder / PREPARED_FILE).write_bytes(prepared_bytes(info))


def _surveyed(schema: DatasetSchema, shards: Shards, path: Path, progress: Progress) -> Survey:
    """Return the survey that lies at `path`, made if it is not there."""
    if not path.exists():
        write_file(path, survey(schema, shards, progress).model_dump_json(by_alias=True).encode())
    return Survey.model_validate_json(path.read_bytes())


def _encode(schema: DatasetSchema, shards: Shards, known: Survey, folder: Path, progress: Progress) -> None:
    """Encode file after file; after each, where the arrays stand is noted."""
    staging = folder / _STAGING_FOLDER
    writers = SplitWriters(folder, staging, schema, SchemaEncoder(known.features), known.sizes)
    assign, done = split_assigner(schema, shards.columns), 0
    finished = writers.resume(staging / _ENCODED_FILE)
    for number, shard in enumerate(shards.one_by_one()):
        columns = schema.wanted_columns if number >= finished else schema.order_columns
        for name, first, frame in shard.chunks(tuple(columns)):
            numbers = assign(frame, name)
            if number >= finished:
                writers.write(frame, numbers, f"{name} from row {first}")
            else:
                writers.skip(frame, numbers, f"{name} from row {first}")
            done += len(frame)
            progress("encode", done, known.total)
        if number >= finished:
            writers.note(staging / _ENCODED_FILE, number + 1)
    writers.finish()


def _fingerprint(source: Source) -> str:
    """Return the digest of everything that decides what the prepared folder holds."""
    parts = {
        "prepare_version": PREPARE_VERSION,
        "source": f"{source.name} {source.version}",
        "schema": source.schema.model_dump(mode="json"),
        "files": {path.name: sha256_of(path) for path in source.files()},
    }
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
