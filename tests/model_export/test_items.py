"""`dlen export --items`: which tables it takes, what it keeps of them, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from bundle.encode import SchemaEncoder
from bundle.errors import ItemIdInvalid
from bundle.items import IDS_FILE, feature_names
from bundle.items_index import words_needed, words_of
from bundle.read import read_bundle
from cli import main
from model_export import items
from model_export.errors import PrecisionRefused, TableInvalid
from model_export.gate import check_gate
from model_export.items import ItemsWanted, write_features
from training.errors import ColumnMissing, ColumnTypeWrong
from training.run import read_run


@pytest.fixture(scope="module")
def frame(item_table):
    return pl.read_parquet(item_table).head(150)


@pytest.fixture(scope="module")
def schema(trained):
    return read_run(trained).schema


def encoded(folder, schema, frame, path, **wanted):
    """Write a table as a file and encode it; return its given shares and the arrays written."""
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    given = write_features(folder, schema, ItemsWanted(path, **wanted))
    return given, {file.name: np.load(file) for file in folder.glob("items.*.npy")}


def test_a_csv_file_and_a_folder_of_parquet_files_give_the_same_items(tmp_path, schema, frame, monkeypatch):
    found = {}
    (tmp_path / "folder").mkdir()
    frame[:100].write_parquet(tmp_path / "folder" / "a.parquet")
    frame[100:].write_parquet(tmp_path / "folder" / "b.parquet")
    for name in ("parquet", "csv", "folder"):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        if name == "folder":
            write_features(out, schema, ItemsWanted(tmp_path / "folder"))
            found[name] = {file.name: np.load(file) for file in out.glob("items.*.npy")}
        else:
            found[name] = encoded(out, schema, frame, tmp_path / f"t.{name}")[1]
    for other in ("csv", "folder"):
        for name, array in found["parquet"].items():
            np.testing.assert_array_equal(found[other][name], array)


def test_what_a_table_lacks_is_encoded_as_missing_and_told(tmp_path, schema, frame):
    name = schema.item_part[0].name
    holes = frame.with_columns(pl.when(pl.int_range(len(frame)) % 2 == 0).then(pl.col(name)).alias(name))
    lacking = holes.drop(schema.item_part[1].name).with_columns(pl.lit(1).alias("something else"))
    given, arrays = encoded(tmp_path, schema, lacking, tmp_path / "t.parquet")
    assert given[name] == pytest.approx(0.5)
    assert given[schema.item_part[1].name] == 0
    order = feature_names(SchemaEncoder(schema).item)
    assert arrays["items.given.npy"][:, order.index(name)].tolist() == [row % 2 == 0 for row in range(len(frame))]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.rename({"id": "item"}), ColumnMissing, "'id'"),
        (lambda t: t.with_columns(pl.col("id").cast(pl.Float64)), TableInvalid, "Float64, want integers or texts"),
        (lambda t: t.with_columns(pl.when(pl.col("id") != t["id"][7]).then("id").alias("id")), TableInvalid, "row 7"),
        (lambda t: pl.concat([t, t[3:4]]), ItemIdInvalid, "rows 3 and 150"),
        (lambda t: t.select("id"), TableInvalid, "no item feature"),
        (lambda t: t.with_columns(pl.col("id").cast(pl.String) + "\0"), ItemIdInvalid, "zero bytes"),
        (lambda t: t.with_columns(pl.lit([["x"]]).alias(t.columns[1])), ColumnTypeWrong, "column"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_name(tmp_path, schema, frame, change, error, message):
    with pytest.raises(error, match=message):
        encoded(tmp_path, schema, change(frame), tmp_path / "t.parquet")


def test_ids_are_texts_and_may_have_a_column_of_another_name(tmp_path, schema, frame):
    named = frame.with_columns(("ü" + pl.col("id").cast(pl.String)).alias("video")).drop("id")
    _, arrays = encoded(tmp_path, schema, named, tmp_path / "t.parquet", id_column="video")
    ids = named["video"].to_list()
    np.testing.assert_array_equal(arrays[IDS_FILE], words_of(ids, words_needed(ids))[0])


def test_nothing_of_a_refused_table_is_left(tmp_path, trained, frame):
    frame.rename({"id": "other"}).write_parquet(tmp_path / "t.parquet")
    out = tmp_path / "models" / "demo" / "1"
    assert main(["export", "--run", str(trained), "--out", str(out), "--items", str(tmp_path / "t.parquet")]) == 2
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["layer1", "packed"])
def test_int8_rows_pass_their_own_gate_and_are_told_in_the_manifest(tmp_path, trained, item_table, monkeypatch, kind):
    monkeypatch.setattr("model_export.write.check_gate", lambda *_: None)  # too few rows to pass by more than luck
    monkeypatch.setattr(items, "ROWS_AT_ONCE", 7)
    out, figures = tmp_path / "models" / "demo" / "1", tmp_path / "figures.json"
    command = ["export", "--run", str(trained), "--out", str(out), "--precision", "int8", "--items", str(item_table)]
    assert main([*command, "--item-rows", kind, "--json", str(figures)]) == 0
    entry = read_bundle(out).manifest.items
    assert entry is not None and entry.precision_gate is not None
    assert (entry.rows, entry.row.dtype, entry.count) == (kind, "uint8", len(pl.read_parquet(item_table)))
    assert entry.parity.max_abs_error <= (1e-6 if kind == "packed" else 0.02)
    assert json.loads(figures.read_text())["items"]["count"] == entry.count


def test_the_gate_of_rows_says_that_it_is_theirs(tmp_path, trained, item_table, monkeypatch):
    asked = []

    def gate(found, what="int8"):
        asked.append(what)
        if what != "int8":
            monkeypatch.setattr("model_export.gate.MEAN_CHANGE_LIMIT", -1)
            check_gate(found, what)

    monkeypatch.setattr("model_export.write.check_gate", gate)
    from model_export.write import export_run

    with pytest.raises(PrecisionRefused, match="int8 by item rows"):
        export_run(trained, tmp_path / "models" / "demo" / "1", "int8", ItemsWanted(item_table))
    assert asked == ["int8", "int8 by item rows"]
