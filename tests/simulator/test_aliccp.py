import errno
import json
import os
import resource
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from cli import main
from simulator import aliccp
from simulator.aliccp import write_aliccp
from simulator.aliccp_world import BUY_RATE, CLICK_RATE, World
from simulator.errors import OutputExists, SizeInvalid

USER_FIELDS = {"101", "109_14", "110_14", "127_14", "150_14", "121", "122", "124", "125", "126", "127", "128", "129"}
ITEM_FIELDS = {"205", "206", "207", "210", "216", "508", "509", "702", "853", "301"}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    out = tmp_path_factory.mktemp("aliccp") / "log"
    return out, write_aliccp(20_000, 3, out)


def lines(path):
    return path.read_text("utf-8").splitlines()


def parsed(features):
    return [tuple(feature.replace("\x03", "\x02").split("\x02")) for feature in features.split("\x01")]


def test_skeleton_lines_are_of_the_official_layout(log):
    fields = set()
    indices = {line.split(",")[0] for line in lines(log[0] / "common_features_train.csv")}
    for number, line in enumerate(lines(log[0] / "sample_skeleton_train.csv")):
        sample_id, click, buy, index, count, features = line.split(",")
        found = parsed(features)
        assert int(sample_id) == number + 1
        assert (click, buy) in {("0", "0"), ("1", "0"), ("1", "1")}
        assert index in indices
        assert int(count) == len(found)
        assert all(int(id_) > 0 and float(value) > 0 for _, id_, value in found)
        fields |= {field for field, _, _ in found}
    assert fields == ITEM_FIELDS


def test_common_features_are_those_of_users_each_once(log):
    fields, indices = set(), []
    for line in lines(log[0] / "common_features_test.csv"):
        index, count, features = line.split(",")
        indices.append(index)
        assert int(count) == len(parsed(features))
        fields |= {field for field, _, _ in parsed(features)}
    assert fields == USER_FIELDS
    assert len(set(indices)) == len(indices) == log[1]["users"]


def test_truth_stands_beside_the_rows_and_orders_them(log):
    out, facts = log
    truth = pl.read_parquet(out / "truth_train" / "*.parquet")
    rows = [line.split(",")[:3] for line in lines(out / "sample_skeleton_train.csv")]
    assert truth["sample_id"].to_list() == [int(row[0]) for row in rows]
    click = np.array([row[1] == "1" for row in rows])
    p = truth["p_click"].to_numpy()
    rank = np.argsort(np.argsort(p)) + 1
    auc = (rank[click].sum() - click.sum() * (click.sum() + 1) / 2) / click.sum() / (~click).sum()
    assert auc == pytest.approx(facts["train"]["oracle_auc"]["click"], abs=1e-3)
    assert auc > 0.65
    assert facts["train"]["oracle_auc"]["buy_given_click"] > 0.65
    assert facts["train"]["clicks"] == click.sum()


def test_rates_are_the_wanted_ones():
    world = World(200_000, np.random.SeedSequence(5))
    rows = world.draw(200_000, np.random.default_rng(6))
    assert rows.p_click_N.mean() == pytest.approx(CLICK_RATE, rel=0.05)
    assert np.average(rows.p_buy_N, weights=rows.p_click_N) == pytest.approx(BUY_RATE, rel=0.05)
    assert not (rows.buy_N & ~rows.click_N).any()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_seeds_write_equal_bytes_and_nothing_else(log, tmp_path):
    write_aliccp(20_000, 3, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(log[0])
    assert {path.name for path in log[0].iterdir()} == {
        "sample_skeleton_train.csv", "sample_skeleton_test.csv", "common_features_train.csv",
        "common_features_test.csv", "truth_train", "truth_test", "simulation.json",
    }  # fmt: skip


@pytest.mark.parametrize("dies_at", [1, 3, 4, 6])
def test_after_a_kill_the_rest_is_written_and_the_bytes_are_the_same(tmp_path, monkeypatch, dies_at):
    class Killed(BaseException):
        """Stands for a SIGKILL: no handler of ours catches it."""

    monkeypatch.setattr(aliccp, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(aliccp, "PART_CHUNKS", 2)
    wanted = write_aliccp(6000, 3, tmp_path / "whole")
    draw, calls = World.draw, []

    def counted(world, rows, rng):
        calls.append(rows)
        if len(calls) == dies_at + 1:  # the first draw is the world's own
            raise Killed
        return draw(world, rows, rng)

    monkeypatch.setattr(World, "draw", counted)
    with pytest.raises(Killed):
        write_aliccp(6000, 3, tmp_path / "log")
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == [".log.partial"]
    del calls[:]
    dies_at = -1
    assert write_aliccp(6000, 3, tmp_path / "log") == wanted
    assert contents(tmp_path / "log") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "whole"]


def test_finished_parts_are_not_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(aliccp, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(aliccp, "PART_CHUNKS", 2)
    monkeypatch.setattr(aliccp, "_append", dies_at_call(aliccp._append, 6))  # 1 writes the users, 2 to 5 two parts
    with pytest.raises(KeyboardInterrupt):
        write_aliccp(6000, 3, tmp_path / "log")
    monkeypatch.undo()
    monkeypatch.setattr(aliccp, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(aliccp, "PART_CHUNKS", 2)
    drawn, draw = [], World.draw
    monkeypatch.setattr(World, "draw", lambda world, rows, rng: (drawn.append(rows), draw(world, rows, rng))[1])
    write_aliccp(6000, 3, tmp_path / "log")
    assert drawn[1:] == [1000, 400, 600]


def dies_at_call(function, number):
    calls = []

    def wrapper(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args)

    return wrapper


@pytest.mark.parametrize(("rows", "seed"), [(10, 1), (5000, -1)])
def test_sizes_that_cannot_be_are_refused(tmp_path, rows, seed):
    with pytest.raises(SizeInvalid):
        write_aliccp(rows, seed, tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


def test_a_log_may_have_the_population_of_a_longer_one(log, tmp_path):
    facts = write_aliccp(2_000, 3, tmp_path / "log", population_of=20_000)
    assert (facts["rows"], facts["users"], facts["items"]) == (2_000, log[1]["users"], log[1]["items"])
    with pytest.raises(SizeInvalid, match="population"):
        write_aliccp(2_000, 3, tmp_path / "other", population_of=5)
    options = ["--rows", "2000", "--seed", "1", "--out", str(tmp_path / "feed"), "--population-of", "20000"]
    assert main(["simulate", *options]) == 2


def test_an_existing_folder_is_refused(log):
    with pytest.raises(OutputExists):
        write_aliccp(20_000, 3, log[0])


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    command = ["simulate", "--layout", "aliccp", "--rows", "20000", "--seed", "1", "--out", str(tmp_path / "log")]
    limit = (1_000_000, 1_000_000)
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_simulate_prints_the_figures(tmp_path, capsys):
    out, figures = tmp_path / "log", tmp_path / "figures.json"
    options = ["--layout", "aliccp", "--rows", "2000", "--seed", "1", "--out", str(out), "--json", str(figures)]
    assert main(["simulate", *options]) == 0
    assert "P(buy|click)" in capsys.readouterr().out
    assert json.loads(figures.read_text()) == json.loads((out / "simulation.json").read_text())


def test_a_scenario_is_refused_with_the_layout(tmp_path, capsys):
    options = ["--layout", "aliccp", "--rows", "2000", "--seed", "1", "--out", str(tmp_path / "log")]
    assert main(["simulate", *options, "--scenario", "default"]) == 2
    assert list(tmp_path.iterdir()) == []
