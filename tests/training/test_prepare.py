"""From a table to a prepared folder: encoding, splits, reuse, what readers are promised."""

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
from tests.training.tables import LABELS_ONLY, ROWS, SCHEMA, arrays, made, same, source, table
from training.errors import (
    OutputExists,
)
from training.prepare import prepare
from training.schema import DatasetSchema
from training.shards import Shards
from training.sources.open import open_source


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


def test_prepared_json_holds_what_readers_are_promised(tmp_path):
    made(tmp_path, table())
    document = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert document["version"] == 1
    assert document["splits"]["test"] == {"rows": 30, "from": "270", "to": "299"}
    assert document["fingerprint"].startswith("sha256:")
    assert document["columns"] == SCHEMA["columns"]
    assert DatasetSchema.model_validate(yaml.safe_load((tmp_path / "out" / "schema.yaml").read_text()))
