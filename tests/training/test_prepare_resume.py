"""A killed `prepare` goes on where it stood: finished work is not done again, and the folder is the same."""

import os
import signal
import subprocess
import sys

import polars as pl
import pytest

from tests.training.tables import LABELS_ONLY, SCHEMA, arrays, same, source, table
from training import prepare as preparing
from training.errors import LabelInvalid, OutputFailed
from training.prepare import prepare
from training.schema import SPLITS
from training.sources import table as tables
from training.write import SplitWriters

FILES = 4


class Killed(BaseException):
    """Stands for a SIGKILL: no handler of ours catches it."""


@pytest.fixture(params=[SCHEMA, LABELS_ONLY | {"columns": {"user": "user"}}], ids=["by-time", "random"])
def opened(request, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = table(300)
    for number in range(FILES):
        rows[75 * number : 75 * (number + 1)].write_parquet(folder / f"{number}.parquet")
    return source(tmp_path, None, request.param, name="shards")


def counted(monkeypatch, owner, name, dies_at=None):
    """Count the calls of a function; the one of number `dies_at` does its work and is killed."""
    calls, original = [], getattr(owner, name)

    def wrapper(*args, **kwargs):
        calls.append(args)
        result = original(*args, **kwargs)
        if len(calls) == dies_at:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapper)
    return calls


@pytest.mark.parametrize(
    ("owner", "name", "dies_at", "surveys", "writes"),
    [
        (SplitWriters, "write", 1, 0, 4),
        (SplitWriters, "note", 1, 0, 3),
        (SplitWriters, "write", 3, 0, 2),
        (SplitWriters, "note", 4, 0, 0),
        (SplitWriters, "finish", 1, 0, 0),
        (preparing, "survey", 1, 1, 4),
    ],
)
def test_after_a_kill_only_unfinished_work_is_done(
    tmp_path, opened, monkeypatch, owner, name, dies_at, surveys, writes
):
    wanted, _ = prepare(opened, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        counted(patched, owner, name, dies_at)
        prepare(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patched:
        surveyed, written = counted(patched, preparing, "survey"), counted(patched, SplitWriters, "write")
        found, _ = prepare(opened, tmp_path / "out")
    assert (len(surveyed), len(written)) == (surveys, writes)
    assert all(same(arrays(found, split), arrays(wanted, split)) for split in SPLITS)
    for split in ("validation", "test"):
        assert pl.read_parquet(found.rows_path(split)).equals(pl.read_parquet(wanted.rows_path(split)))
    assert found.info == wanted.info and found.schema == wanted.schema
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "schema.yaml", "shards", "whole"]


def test_a_csv_file_is_turned_into_parquet_once(tmp_path, monkeypatch):
    opened = source(tmp_path, table(), LABELS_ONLY, name="rows.csv")
    wanted, _ = prepare(opened, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        counted(patched, preparing, "survey", 1)
        prepare(opened, tmp_path / "out")
    with monkeypatch.context() as patched:
        staged = counted(patched, tables, "stage_csv")
        found, _ = prepare(opened, tmp_path / "out")
    assert staged == []
    assert all(same(arrays(found, split), arrays(wanted, split)) for split in SPLITS)


def test_what_was_begun_from_other_input_is_not_taken(tmp_path, opened, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        counted(patched, SplitWriters, "note", 3)
        prepare(opened, tmp_path / "out")
    table(75, seed=9).write_parquet(tmp_path / "shards" / "0.parquet")
    wanted, _ = prepare(opened, tmp_path / "whole")
    found, _ = prepare(opened, tmp_path / "out")
    assert all(same(arrays(found, split), arrays(wanted, split)) for split in SPLITS)


def test_a_refusal_leaves_nothing_to_resume(tmp_path, opened):
    table(75).with_columns(click=pl.lit(2)).write_parquet(tmp_path / "shards" / "3.parquet")
    with pytest.raises(LabelInvalid):
        prepare(opened, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["schema.yaml", "shards"]


def test_two_at_once_do_not_mix(tmp_path, opened, monkeypatch):
    def meanwhile(*_):
        with pytest.raises(OutputFailed, match="another process"):
            prepare(opened, tmp_path / "out")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(preparing, "survey", meanwhile)
        prepare(opened, tmp_path / "out")
    assert prepare(opened, tmp_path / "out")[1]


def test_a_real_kill_is_survived(tmp_path, opened):
    script = (
        "import os, signal, sys; from pathlib import Path; from training.prepare import prepare;"
        "from training.sources.open import open_source; from training.write import SplitWriters;"
        "note, calls = SplitWriters.note, [];"
        "SplitWriters.note = lambda *a: (note(*a), calls.append(a), len(calls) == 2 and os.kill(os.getpid(), 9));"
        "prepare(open_source('table', Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]))"
    )
    paths = [str(tmp_path / name) for name in ("shards", "schema.yaml", "out")]
    done = subprocess.run([sys.executable, "-c", script, *paths], check=False, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    wanted, _ = prepare(opened, tmp_path / "whole")
    found, made = prepare(opened, tmp_path / "out")
    assert made
    assert all(same(arrays(found, split), arrays(wanted, split)) for split in SPLITS)
