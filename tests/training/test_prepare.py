"""From a table to a prepared folder: encoding, splits, reuse, and every way in which input can be wrong."""

from __future__ import annotations

import datetime
import json
from functools import partialmethod

import numpy as np
import polars as pl
import pytest
import yaml

from bundle.encode import SchemaEncoder
from bundle.features import FeatureSchema
from training.dataset import read_prepared
from training.errors import (
    ColumnMissing,
    ColumnTypeWrong,
    LabelInvalid,
    OutputExists,
    PreparedInvalid,
    SourceEmpty,
    SourceMissing,
    SourceUnreadable,
    SplitInvalid,
    TaskDegenerate,
    TrainingError,
)
from training.prepare import prepare
from training.schema import DatasetSchema
from training.shards import Shards
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


def test_rows_land_in_their_split_in_order(tmp_path):
    frame = table()
    prepared = made(tmp_path, frame)
    assert [prepared.info.splits[s].rows for s in ("train", "validation", "test")] == [240, 30, 30]
    assert (prepared.info.splits["validation"].first, prepared.info.splits["validation"].last) == ("240", "269")
    assert prepared.split("test").labels[:, 0].tolist() == frame["click"].to_list()[270:]
    assert [task.name for task in prepared.tasks] == ["click", "hate"]
    assert prepared.tasks[1].held_out


def test_base_rates_and_encodings_come_from_training_rows_only(tmp_path):
    frame = table()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = made(tmp_path / "a", frame)
    late = pl.col("t") >= 240
    changed = frame.with_columns(
        pl.when(late).then(pl.lit("new town")).otherwise("city").alias("city"),
        pl.when(late).then(pl.col("price") * 1000).otherwise("price").alias("price"),
        pl.when(late).then(1e6).otherwise("age").alias("age"),
        pl.when(late).then(1).otherwise("click").alias("click"),
    )
    other = made(tmp_path / "b", changed)
    assert one.schema == other.schema
    assert one.tasks == other.tasks
    assert one.tasks[0].base_rate == frame["click"][:240].mean()
    assert same(arrays(one, "train"), arrays(other, "train"))


def test_codes_are_those_of_the_encoder_on_the_raw_rows(tmp_path):
    frame = table()
    prepared = made(tmp_path, frame)
    encoder = SchemaEncoder(FeatureSchema.model_validate_json((tmp_path / "out" / "features.json").read_text()))
    tail = frame[270:]
    tags = [[int(t) for t in text.split("|") if t] for text in tail["tags"].to_list()]
    request = encoder.request.columns_from_python({"city": tail["city"].to_list(), "age": tail["age"].to_list()})
    item = encoder.item.columns_from_python(
        {"item": tail["item"].to_list(), "tags": tags, "price": tail["price"].to_list()}
    )
    parts = [encoder.request.encode(request, 30), encoder.item.encode(item, 30)]
    test = prepared.split("test")
    assert np.array_equal(test.codes, np.hstack([part.codes_NC for part in parts]))
    assert np.array_equal(test.values, np.hstack([part.values_NV for part in parts]))
    assert prepared.request_code_columns == 1
    assert prepared.request_value_columns == 2


def test_users_are_numbered_alike_in_every_split(tmp_path):
    frame = table()
    prepared = made(tmp_path, frame)
    numbers = np.concatenate([prepared.split(s).user for s in ("train", "validation", "test")])
    known: dict[str, int] = {}
    for user, number in zip(frame["user"], numbers.tolist(), strict=True):
        assert known.setdefault(user, number) == number
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_size_of_the_pieces_changes_nothing(tmp_path, monkeypatch, rows):
    for schema in (SCHEMA, LABELS_ONLY):
        folder = tmp_path / schema["split"]["by"]
        (folder / "a").mkdir(parents=True)
        (folder / "b").mkdir()
        whole = made(folder / "a", table(), schema)
        monkeypatch.setattr(Shards, "chunks", partialmethod(Shards.chunks, rows=rows))
        pieces = made(folder / "b", table(), schema)
        monkeypatch.undo()
        assert whole.schema == pieces.schema
        assert whole.info == pieces.info.model_copy(update={"input": whole.info.input})
        for split in ("train", "validation", "test"):
            assert same(arrays(whole, split), arrays(pieces, split))


def test_a_table_without_user_and_time_splits_by_a_seed(tmp_path):
    frame = table(2000).drop("user", "t", "fold")
    prepared = made(tmp_path, frame, LABELS_ONLY)
    sizes = {name: split.rows for name, split in prepared.info.splits.items()}
    assert sum(sizes.values()) == 2000
    assert abs(sizes["test"] - 600) < 100
    assert abs(sizes["validation"] - 400) < 100
    assert prepared.split("train").user is None


def test_a_split_column_decides(tmp_path):
    prepared = made(tmp_path, table(), SCHEMA | {"split": {"by": "column", "column": "fold"}})
    assert {name: split.rows for name, split in prepared.info.splits.items()} == {
        "train": 240, "validation": 30, "test": 30
    }  # fmt: skip


def test_rows_outside_the_bounds_are_left_out_and_counted(tmp_path):
    split = SCHEMA["split"] | {"train_from": 100, "test_until": 289}
    prepared = made(tmp_path, table(), SCHEMA | {"split": split})
    assert prepared.info.left_out == 110
    assert prepared.split("test").rows == 20


@pytest.mark.parametrize("kind", ["date", "datetime", "string", "zoned"])
def test_time_bounds_follow_the_column(tmp_path, kind):
    days = pl.Series([datetime.date(2024, 1, 1) + datetime.timedelta(days=i // 100) for i in range(ROWS)])
    bounds: tuple[object, object] = (datetime.date(2024, 1, 2), datetime.date(2024, 1, 3))
    if kind == "string":
        days, bounds = days.cast(pl.String), ("2024-01-02", "2024-01-03")
    elif kind != "date":
        days = days.cast(pl.Datetime("us", "UTC" if kind == "zoned" else None))
    split = {"by": "time", "validation_from": bounds[0], "test_from": bounds[1]}
    prepared = made(tmp_path, table().with_columns(days.alias("t")), SCHEMA | {"split": split})
    assert [s.rows for s in prepared.info.splits.values()] == [100, 100, 100]


def test_csv_gives_what_parquet_gives(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = made(tmp_path / "a", table()), made(tmp_path / "b", table(), name="rows.csv")
    assert one.schema == other.schema
    for split in ("train", "validation", "test"):
        assert same(arrays(one, split), arrays(other, split))
    assert [path.name for path in (tmp_path / "b" / "out").iterdir() if path.name.startswith("staging")] == []


def test_a_folder_or_glob_of_shards_is_one_table(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "whole").mkdir()
    frame = table()
    frame[:100].write_parquet(tmp_path / "shards" / "part-0.parquet")
    frame[100:].write_parquet(tmp_path / "shards" / "part-1.parquet")
    whole = made(tmp_path / "whole", frame)
    for number, given in enumerate((tmp_path / "shards", tmp_path / "shards" / "part-*.parquet")):
        prepared, _ = prepare(open_source("table", given, tmp_path / "whole" / "schema.yaml"), tmp_path / f"o{number}")
        assert same(arrays(whole, "train"), arrays(prepared, "train"))


def test_nan_is_missing_and_counted(tmp_path):
    frame = table().with_columns(pl.col("age").fill_null(float("nan")))
    (tmp_path / "null").mkdir()
    (tmp_path / "nan").mkdir()
    one, other = made(tmp_path / "null", table()), made(tmp_path / "nan", frame)
    assert same(arrays(one, "train"), arrays(other, "train"))
    assert other.info.missing["age"] == pytest.approx(35 / 240, abs=1e-9)


def test_whole_floats_serve_as_integer_categories(tmp_path):
    frame = table().with_columns(
        pl.when(pl.col("t") == 5).then(None).otherwise(pl.col("item").cast(pl.Float64)).alias("item")
    )
    schema = SCHEMA | {"columns": {"user": "user", "time": "t"}}
    prepared = made(tmp_path, frame, schema)
    assert prepared.schema.features[1].value_type == "integer"


def test_a_second_run_reuses_only_what_came_from_the_same_input(tmp_path):
    first = source(tmp_path, table())
    assert prepare(first, tmp_path / "out")[1]
    before = (tmp_path / "out" / "prepared.json").stat().st_mtime_ns
    assert not prepare(first, tmp_path / "out")[1]
    assert (tmp_path / "out" / "prepared.json").stat().st_mtime_ns == before
    changed = source(tmp_path, table(seed=1))
    with pytest.raises(OutputExists, match="--force"):
        prepare(changed, tmp_path / "out")
    assert prepare(changed, tmp_path / "out", force=True)[1]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(OutputExists, match="something else"):
        prepare(source(tmp_path, table()), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "x"


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
    "ragged CSV": (ragged, SourceUnreadable, "rows.csv"),
    "no rows": (lambda f: source(f, table().head(0)), SourceEmpty, "no rows"),
    "missing label column": (lambda f: source(f, table().drop("hate")), ColumnMissing, "'hate'"),
    "missing feature column": (lambda f: source(f, table().drop("price")), ColumnMissing, "'price'"),
    "missing user column": (lambda f: source(f, table().drop("user")), ColumnMissing, "'user'"),
    "NaN label": (with_column(click=at(17, float("nan"), "click")), LabelInvalid, "'click' row 17: got nan"),
    "null label": (with_column(click=at(17, None, "click")), LabelInvalid, "'click' row 17: got None"),
    "label 2": (with_column(click=at(299, 2, "click")), LabelInvalid, "'click' row 299: got 2"),
    "label -1": (with_column(hate=at(0, -1, "hate")), LabelInvalid, "'hate' row 0: got -1"),
    "label text": (with_column(click=pl.lit("yes")), ColumnTypeWrong, "'click'"),
    "text in a numeric feature": (with_column(price=pl.lit("dear")), ColumnTypeWrong, "'price'"),
    "infinite number": (with_column(price=at(3, float("inf"), "price")), ColumnTypeWrong, "infinity in row 3"),
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


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from training import write

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.np.lib.format, "open_memmap", full)
    with pytest.raises(TrainingError, match="No space left"):
        made(tmp_path, table())
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet", "schema.yaml"]


def test_prepared_json_holds_what_readers_are_promised(tmp_path):
    made(tmp_path, table())
    document = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert document["version"] == 1
    assert document["splits"]["test"] == {"rows": 30, "from": "270", "to": "299"}
    assert document["fingerprint"].startswith("sha256:")
    assert document["columns"] == SCHEMA["columns"]
    assert DatasetSchema.model_validate(yaml.safe_load((tmp_path / "out" / "schema.yaml").read_text()))
