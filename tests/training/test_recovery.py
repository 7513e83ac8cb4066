"""P(UP) against the truth of the simulator: what the joint loss promises."""

from __future__ import annotations

import json

import pytest

from cli import main
from training.dataset import read_prepared
from training.errors import SourceInvalid
from training.recovery import truth_of


def test_true_rows_line_up_with_the_splits_rows(simulated, prepared):
    data = read_prepared(prepared)
    truth, labels = truth_of(simulated, data, "test"), data.split("test").labels
    assert len(truth.u_N) == len(labels)
    clicks = labels[:, 0]
    assert clicks[truth.z_N == 1].mean() > 5 * clicks[truth.z_N == 0].mean()


def test_the_truth_of_another_log_is_refused(prepared, tmp_path):
    assert main(["simulate", "--out", str(tmp_path / "other"), "--impressions", "12000", "--seed", "6"]) == 0
    with pytest.raises(SourceInvalid, match="other rows"):
        truth_of(tmp_path / "other", read_prepared(prepared), "test")


def test_joint_loss_finds_the_level_of_p_up(tmp_path):
    """Full-size recovery (AUC at 95 % of the oracle's) takes minutes: `dlen demo` prints it."""
    logs, data = tmp_path / "logs", tmp_path / "data"
    assert main(["simulate", "--out", str(logs), "--impressions", "60000", "--seed", "2"]) == 0
    assert main(["prepare", "--source", "simulator", "--input", str(logs), "--out", str(data)]) == 0
    small = ["experts=2", "expert_hidden=[32,16]", "latent_hidden=[32,16]", "learning_rate=0.003", "batch_size=512"]
    settings = [argument for setting in small for argument in ("--set", setting)]
    for prior in (0.45, 0.6):
        run, figures = tmp_path / f"run{prior}", tmp_path / f"{prior}.json"
        arguments = ["--data", str(data), "--out", str(run), *settings, "--set", f"prior_up={prior}"]
        assert main(["train", *arguments]) == 0
        evaluate = ["evaluate", "--run", str(run), "--data", str(data), "--truth", str(logs), "--json", str(figures)]
        assert main(evaluate) == 0
        found = json.loads(figures.read_text())["recovery"]
        assert abs(found["mean_p_up"] - found["mean_u"]) < 0.05
        assert found["auc"] > 0.88 * found["oracle_auc"]
