"""What `prepare` refuses, and what a damaged prepared folder is told: one line each, nothing left behind."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tests.training.tables import SCHEMA, made, no_file_beyond, source, table
from training.dataset import read_prepared
from training.errors import (
    ColumnMissing,
    ColumnTypeWrong,
    LabelInvalid,
    PreparedInvalid,
    SourceEmpty,
    SourceMissing,
    SourceUnreadable,
    SplitInvalid,
    TaskDegenerate,
    TrainingError,
)
from training.prepare import prepare


def truncated(folder):
    path = folder / "rows.parquet"
    table().write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    return source(folder, None)


def damaged_page(folder):
    path = folder / "rows.parquet"
    table(20_000).write_parquet(path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:40_000] = bytes(39_800)
    path.write_bytes(bytes(data))
    return source(folder, None)


def with_column(**columns):
    return lambda folder: source(folder, table().with_columns(**columns))


def with_schema(**change):
    return lambda folder: source(folder, table(), SCHEMA | change)


def at(row, value, column):
    return pl.when(pl.col("t") == row).then(pl.lit(value)).otherwise(pl.col(column))


def empty_file(folder):
    (folder / "rows.csv").write_bytes(b"")
    return source(folder, None, name="rows.csv")


def header_only(folder):
    return source(folder, table().head(0), name="rows.csv")


def ragged(folder):
    (folder / "rows.csv").write_text("user,item,t\n1,2,3\n1,2,3,4,5\n")
    return source(folder, None, name="rows.csv")


BY_FOLD = {"by": "column", "column": "fold"}
WRONG = {
    "missing file": (lambda f: source(f, None), SourceMissing, "rows.parquet: got no such file"),
    "truncated Parquet": (truncated, SourceUnreadable, "rows.parquet"),
    "damaged page": (damaged_page, SourceUnreadable, "rows.parquet"),
    "empty file": (empty_file, SourceEmpty, "rows.csv: got an empty file"),
    "header only": (header_only, SourceEmpty, "no rows"),
    "ragged CSV": (ragged, SourceUnreadable, "want a CSV file with a header"),
    "no rows": (lambda f: source(f, table().head(0)), SourceEmpty, "no rows"),
    "missing label column": (lambda f: source(f, table().drop("hate")), ColumnMissing, "'hate'"),
    "missing feature column": (lambda f: source(f, table().drop("price")), ColumnMissing, "'price'"),
    "missing user column": (lambda f: source(f, table().drop("user")), ColumnMissing, "'user'"),
    "NaN label": (with_column(click=at(17, float("nan"), "click")), LabelInvalid, "'click' row 17: got nan"),
    "null label": (with_column(click=at(17, None, "click")), LabelInvalid, "'click' row 17: got None"),
    "label 2": (with_column(click=at(299, 2, "click")), LabelInvalid, "'click' row 299: got 2"),
    "label -1": (with_column(hate=at(0, -1, "hate")), LabelInvalid, "'hate' row 0: got -1"),
    "label text": (with_column(click=pl.lit("yes")), ColumnTypeWrong, "'click'"),
    "text in a numeric feature": (with_column(price=pl.lit("dear")), ColumnTypeWrong, "rows.parquet: column 'price'"),
    "infinite number": (with_column(price=at(3, float("inf"), "price")), ColumnTypeWrong, "infinity in row 3"),
    "infinite number among test rows": (
        with_column(price=at(299, float("inf"), "price")), ColumnTypeWrong, "infinity in row 299"),
    "broken number as category": (with_column(item=pl.col("item") + 0.5), ColumnTypeWrong, "'item'"),
    "lists without separator": (
        with_schema(features=[SCHEMA["features"][1], {**SCHEMA["features"][2], "separator": None}]),
        ColumnTypeWrong, "separator"),
    "null user": (with_column(user=at(9, None, "user")), ColumnTypeWrong, "'user'"),
    "null time": (with_column(t=pl.when(pl.col("t") != 9).then("t")), SplitInvalid, "'t' row 9: got null"),
    "no rows in a split": (
        with_schema(split={"by": "time", "validation_from": 1000, "test_from": 2000}), SplitInvalid, "'validation'"),
    "unknown split value": (
        lambda f: source(f, table().with_columns(fold=at(4, "holdout", "fold")), SCHEMA | {"split": BY_FOLD}),
        SplitInvalid, "'fold' row 4: got holdout"),
    "split column of numbers": (with_schema(split={"by": "column", "column": "item"}), ColumnTypeWrong, "'item'"),
    "bounds of another type": (
        with_schema(split={"by": "time", "validation_from": "a", "test_from": "b"}), ColumnTypeWrong, "'t'"),
    "single class in training": (
        with_column(click=pl.when(pl.col("t") < 240).then(0).otherwise("click")), TaskDegenerate, "'click'"),
}  # fmt: skip


@pytest.mark.parametrize("build, error, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_clear_line_and_leaves_nothing(tmp_path, build, error, message):
    with pytest.raises(TrainingError) as caught:
        prepare(build(tmp_path), tmp_path / "out" / "data")
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_held_out_task_may_have_a_single_class(tmp_path):
    assert made(tmp_path, table().with_columns(hate=pl.lit(0))).tasks[1].base_rate == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "prepared.json").unlink(), "prepared.json"),
        (lambda f: (f / "prepared.json").write_text("{}"), "prepared.json"),
        (lambda f: (f / "test" / "codes.npy").unlink(), "codes.npy"),
        (
            lambda f: (f / "test" / "labels.npy").write_bytes((f / "test" / "labels.npy").read_bytes()[:-5]),
            "labels.npy",
        ),
        (lambda f: np.save(f / "test" / "codes.npy", np.zeros((2, 2), np.int32)), "codes.npy: got int32[2, 2]"),
        (lambda f: np.save(f / "test" / "values.npy", np.zeros((30, 2))), "values.npy: got float64"),
    ],
)
def test_a_broken_prepared_folder_is_named(tmp_path, damage, message):
    made(tmp_path, table())
    damage(tmp_path / "out")
    with pytest.raises(PreparedInvalid) as caught:
        read_prepared(tmp_path / "out").split("test")
    assert message in str(caught.value)


@pytest.mark.parametrize("limit_bytes", [0, 200, 400, 1500])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, limit_bytes):
    opened = source(tmp_path, table())
    with no_file_beyond(limit_bytes), pytest.raises(TrainingError, match="File too large"):
        prepare(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "schema.yaml"]
