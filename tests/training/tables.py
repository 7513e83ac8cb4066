"""A small table of impressions, its schema, and the folder that `prepare` makes of it: what its tests start from."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import numpy as np
import polars as pl
import yaml

from training.prepare import prepare
from training.sources.open import open_source

ROWS = 300


def table(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in random.integers(0, 20, rows)],
            "item": random.integers(0, 50, rows),
            "t": np.arange(rows),
            "fold": ["train"] * (rows - 60) + ["validation"] * 30 + ["test"] * 30,
            "city": pl.Series([["rome", "oslo", None, "köln"][i] for i in random.integers(0, 4, rows)]),
            "tags": ["|".join(map(str, random.integers(0, 9, i % 4))) for i in range(rows)],
            "price": random.lognormal(size=rows),
            "age": pl.Series([None if i % 7 == 0 else float(i % 50) for i in range(rows)]),
            "click": random.integers(0, 2, rows),
            "hate": (random.random(rows) < 0.1).astype(np.int8),
        }
    )


SCHEMA = {
    "columns": {"user": "user", "item": "item", "time": "t"},
    "split": {"by": "time", "validation_from": 240, "test_from": 270},
    "tasks": [{"name": "click", "label": "click"}, {"name": "hate", "label": "hate", "kind": "negative",
                                                    "held_out": True}],
    "features": [
        {"name": "city", "side": "user", "kind": "categorical", "encoding": {"type": "vocabulary"}},
        {"name": "item", "side": "item", "kind": "categorical", "encoding": {"type": "hash", "buckets": 32}},
        {"name": "tags", "side": "item", "kind": "categorical_list", "value_type": "integer", "separator": "|",
         "max_length": 2, "encoding": {"type": "vocabulary"}},
        {"name": "price", "side": "item", "kind": "numeric", "encoding": {"type": "quantile", "buckets": 4}},
        {"name": "age", "side": "context", "kind": "numeric", "encoding": {"type": "standardise"}},
    ],
}  # fmt: skip
LABELS_ONLY = {
    "split": {"by": "random", "seed": 3, "validation": 0.2, "test": 0.3},
    "tasks": SCHEMA["tasks"],
    "features": SCHEMA["features"],
}


def source(folder, frame, schema=SCHEMA, name="rows.parquet"):
    path = folder / name
    if isinstance(frame, pl.DataFrame):
        frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    return open_source("table", path, folder / "schema.yaml")


def made(folder, frame, schema=SCHEMA, name="rows.parquet"):
    return prepare(source(folder, frame, schema, name), folder / "out")[0]


def arrays(prepared, split):
    part = prepared.split(split)
    return {"codes": part.codes, "values": part.values, "labels": part.labels, "user": part.user}


def same(one, other):
    return all(np.array_equal(one[k], other[k]) if one[k] is not None else other[k] is None for k in one)


@contextmanager
def no_file_beyond(limit_bytes):
    """Within, writing more than so many bytes to any file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
