import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from cli import main
from simulator.aliccp import write_aliccp
from tests.training.tables import no_file_beyond
from training.dataset import read_prepared
from training.errors import ColumnMissing, DatasetSchemaInvalid, LineInvalid, OutputFailed, SourceInvalid, SourceMissing
from training.prepare import prepare
from training.sources import aliccp
from training.sources.aliccp import DEFAULT_SCHEMA, open_aliccp

FIELDS = {"f_101": "user", "f_126": "user", "f_109_14": "user", "f_205": "item", "f_210": "item", "f_508": "item"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "aliccp"
    write_aliccp(6000, 3, folder)
    return folder


@pytest.fixture
def copy(raw, tmp_path):
    return Path(shutil.copytree(raw, tmp_path / "raw"))


def staged(folder, out, schema=None):
    out.mkdir(exist_ok=True)
    shards, dropped = open_aliccp(folder, schema).stage(out)
    return pl.concat([frame for _, _, frame in shards.chunks(list(shards.columns))]), dropped


def joined_slowly(folder, part):
    """Each skeleton line with the features of its user: a list of ids by field."""

    def ids(features):
        found = {}
        for feature in features.split("\x01"):
            field, _, rest = feature.partition("\x02")
            found.setdefault(f"f_{field}", []).append(int(rest.split("\x03")[0]))
        return found

    common = {}
    for line in (folder / f"common_features_{part}.csv").read_text().splitlines():
        index, _, features = line.split(",")
        common[index] = ids(features)
    for line in (folder / f"sample_skeleton_{part}.csv").read_text().splitlines():
        _, click, buy, index, _, features = line.split(",")
        yield int(click), int(buy), common[index] | ids(features)


def test_rows_are_the_join_of_both_files(raw, tmp_path):
    rows, dropped = staged(raw, tmp_path / "staging")
    wanted = [row for part in ("train", "test") for row in joined_slowly(raw, part)]
    assert dropped == 0
    assert rows["click"].to_list() == [click for click, _, _ in wanted]
    assert rows["buy"].to_list() == [buy for _, buy, _ in wanted]
    assert rows["user"].to_list() == [ids["f_101"][0] for _, _, ids in wanted]
    for name in FIELDS:
        lists = isinstance(rows.schema[name], pl.List)
        slots = 4 if name == "f_109_14" else 3
        expected = [ids.get(name, [])[:slots] if lists else ids.get(name, [None])[0] for _, _, ids in wanted]
        assert rows[name].to_list() == expected


def test_users_of_the_training_file_train_or_validate_never_both(raw, tmp_path):
    rows, _ = staged(raw, tmp_path / "staging")
    assert rows["split"].to_list()[-600:] == ["test"] * 600
    per_user = rows.filter(pl.col("split") != "test").group_by("user").agg(pl.col("split").n_unique())
    assert per_user["split"].max() == 1
    assert set(rows["split"]) == {"train", "validation", "test"}


def test_the_share_of_validating_users_is_the_documented_one(raw):
    source = aliccp._Part(open_aliccp(raw), "train", Path())
    split = source._split(np.arange(100_000)).to_pylist()
    assert split.count("validation") / len(split) == pytest.approx(aliccp.VALIDATION_SHARE, rel=0.05)


def test_shards_of_any_size_hold_the_same_rows(raw, tmp_path, monkeypatch):
    whole, _ = staged(raw, tmp_path / "whole")
    monkeypatch.setattr(aliccp, "SHARD_BYTES", 100_000)
    pieces, _ = staged(raw, tmp_path / "pieces")
    assert len(list((tmp_path / "pieces").glob("train-*.parquet"))) > 3
    assert pieces.equals(whole)


def test_finished_shards_are_taken_as_they_are_and_others_written(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(aliccp, "SHARD_BYTES", 100_000)
    folder = tmp_path / "staging"
    whole, _ = staged(raw, folder)
    (folder / "train-00001.parquet").rename(folder / "train-00001.part")  # as a kill leaves it
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    again, _ = staged(raw, folder)
    assert again.equals(whole)
    assert before == {
        path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet") if path.name != "train-00001.parquet"
    }
    lines = [int(pq.read_metadata(path).metadata[b"lines"]) for path in sorted(folder.glob("train-*.parquet"))]
    assert sum(lines) == 5400


def replaced(path, line, old, new):
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))


def test_rows_bought_without_a_click_are_dropped_and_counted(copy, tmp_path):
    path = copy / "sample_skeleton_train.csv"
    unclicked = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if line.split(",")[1] == "0")
    replaced(path, unclicked, f"{unclicked},0,0,", f"{unclicked},0,1,")
    rows, dropped = staged(copy, tmp_path / "staging")
    assert dropped == 1
    assert len(rows) == 5999


def test_an_index_without_common_features_is_refused_with_its_line(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(aliccp, "SHARD_BYTES", 100_000)
    path = copy / "sample_skeleton_train.csv"
    index = path.read_text().splitlines()[4999].split(",")[3]
    replaced(path, 5000, index, "0" * 16)
    with pytest.raises(LineInvalid, match="sample_skeleton_train.csv: line 5000: common_feature_index: got 0000000000"):
        staged(copy, tmp_path / "staging")


def test_a_broken_line_deep_in_the_file_is_refused_with_its_number(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(aliccp, "SHARD_BYTES", 100_000)
    replaced(copy / "sample_skeleton_train.csv", 4321, "\x02", "")
    with pytest.raises(LineInvalid, match="line 4321: feature 1: got"):
        staged(copy, tmp_path / "staging")


def test_an_index_that_stands_twice_is_refused_with_both_lines(copy, tmp_path):
    path = copy / "common_features_train.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[6] + "\n")
    with pytest.raises(SourceInvalid, match="line 121: got the index of line 7 again"):
        staged(copy, tmp_path / "staging")


def test_a_missing_file_is_named(copy):
    (copy / "common_features_test.csv").unlink()
    with pytest.raises(SourceMissing, match="common_features_test.csv: got no such file"):
        open_aliccp(copy)


@pytest.mark.parametrize(
    ("old", "new", "error", "found"),
    [
        ("f_101,", "f_999,", ColumnMissing, "field 'f_999'"),
        ("f_101, side: user", "f_101, side: item", ColumnMissing, "field 'f_101'"),
        ("f_101,", "user_id,", DatasetSchemaInvalid, "feature 'user_id'"),
        (
            "f_121, side: user, kind: categorical, encoding: {type: vocabulary}",
            "f_121, side: user, kind: numeric",
            DatasetSchemaInvalid,
            "kind",
        ),
    ],
)
def test_a_schema_that_does_not_fit_the_files_is_refused(raw, tmp_path, old, new, error, found):
    text = DEFAULT_SCHEMA.read_text()
    assert old in text
    (tmp_path / "schema.yaml").write_text(text.replace(old, new))
    with pytest.raises(error, match=found):
        staged(raw, tmp_path / "staging", tmp_path / "schema.yaml")


def test_prepare_makes_a_folder_that_training_reads(raw, tmp_path, capsys):
    out = tmp_path / "prepared"
    assert main(["prepare", "--source", "aliccp", "--input", str(raw), "--out", str(out)]) == 0
    prepared = read_prepared(out)
    assert [task.name for task in prepared.tasks] == ["click", "buy"]
    assert sum(split.rows for split in prepared.info.splits.values()) == 6000
    assert prepared.split("test").rows == 600
    assert (prepared.split("train").labels[:, 0] >= prepared.split("train").labels[:, 1]).all()
    assert not prepare(open_aliccp(raw), out)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize("limit_bytes", [1000, 60_000, 400_000, 700_000])
def test_a_full_disk_at_any_stage_is_an_error_and_leaves_nothing(raw, tmp_path, limit_bytes):
    with no_file_beyond(limit_bytes), pytest.raises(OutputFailed, match="File too large"):
        prepare(open_aliccp(raw), tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []
