"""The benchmark of the loop: what it writes can be trained on and learned from, what it reports adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cli import main
from training.dataset import read_prepared
from training.speed import Clock, write_rows

SMALL = ["--rows", "20000", "--codes", "20", "--rounds", "1", "--set", "batch_size=512"]


def test_the_benchmark_reports_rows_per_second_aucs_above_chance_and_shares_of_time(tmp_path, capsys):
    assert main(["benchmark", "train", *SMALL, "--json", str(tmp_path / "speed.json")]) == 0
    document = json.loads((tmp_path / "speed.json").read_text())
    assert document["rows_per_cpu_s"] > 0 and document["rows_per_wall_s"] > 0
    assert min(document["auc"].values()) > 0.55
    shares = [operator["share"] for operator in document["operators"]]
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1
    assert "rows per second of CPU" in capsys.readouterr().out


def test_too_few_rows_are_refused_with_the_number_needed(capsys):
    assert main(["benchmark", "train", "--rows", "3000"]) == 2
    assert "at least 14336" in capsys.readouterr().err


def test_rates_leave_out_the_first_steps():
    clock = Clock([(float(t), 2.0 * t) for t in (0, 100, 101, 102, 103, 104, 105, 106)])
    assert clock.rows_per_s(10) == pytest.approx((10.0, 5.0))


def test_made_up_rows_are_a_prepared_folder_with_the_asked_number_of_codes(tmp_path):
    write_rows(tmp_path / "data", 1000, codes=7, seed=3)
    data = read_prepared(tmp_path / "data")
    train = data.split("train")
    assert (train.rows, len(data.tasks)) == (1000, 5)
    assert (np.min(train.codes), np.max(train.codes)) == (2, 8)
    assert all(code.encoding.codes == 9 for code in data.schema.features)
