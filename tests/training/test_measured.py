import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cli import main
from simulator.aliccp import write_aliccp
from training.compare import TestRows
from training.dataset import read_prepared
from training.errors import ConfigInvalid
from training.experiment import read_experiment
from training.measured import measures
from training.prepare import prepare
from training.sources.aliccp import open_aliccp
from training.tensors import read_tensors

TABLE_3 = Path(__file__).parents[2] / "configs" / "experiments" / "table-3.yaml"


def some_rows():
    random = np.random.default_rng(0)
    click = random.integers(0, 2, 200)
    labels = np.stack([random.integers(0, 2, 200), click, click * random.integers(0, 2, 200)], 1).astype(np.uint8)
    return TestRows(("hate", "click", "buy"), (1, 2), labels, random.integers(0, 9, 200), None)


def test_a_task_given_another_is_measured_on_that_ones_rows_by_their_ratio():
    rows = some_rows()
    p_SNT = np.random.default_rng(1).random((3, 200, 2)).astype(np.float32)
    click, buy, conditional = measures(rows, {"buy": "click"})
    assert [m.name for m in (click, buy, conditional)] == ["click", "buy", "buy_given_click"]
    assert np.array_equal(buy.scores(p_SNT), p_SNT[:, :, 1]) and np.array_equal(buy.labels_M, rows.labels[:, 2])
    clicked = [row for row in range(200) if rows.labels[row, 1]]
    assert conditional.labels_M.tolist() == [rows.labels[row, 2] for row in clicked]
    assert conditional.users_M.tolist() == [rows.users_N[row] for row in clicked]
    wanted = [[min(p[row, 1] / p[row, 0], 1) for row in clicked] for p in p_SNT]
    assert np.allclose(conditional.scores(p_SNT), wanted)


@pytest.mark.parametrize("given", [{"buy": "buy"}, {"buy": "hate"}, {"like": "click"}])
def test_given_must_name_two_learned_tasks(given):
    with pytest.raises(ConfigInvalid, match="want two different of click, buy"):
        measures(some_rows(), given)


def test_table_3_has_the_papers_sizes():
    experiment = read_experiment(TABLE_3)
    assert experiment.paper == "table-3" and len(experiment.seeds) == 5
    for name, network in (("MMOE", "mmoe"), ("MMOE-DLEN", "dlen-mmoe"), ("PLE", "ple"), ("PLE-DLEN", "dlen-ple")):
        model = experiment.run_config(name).model
        assert (model.name, model.experts, model.shared_experts, model.task_experts) == (network, 2, 2, 1)
        assert model.expert_hidden == model.latent_hidden == (256, 128, 64)
        assert model.within == {"buy": "click"}


def test_table_3_runs_and_measures_cvr_on_clicked_rows(tmp_path, capsys):
    write_aliccp(20_000, 1, tmp_path / "raw")
    data, _ = prepare(open_aliccp(tmp_path / "raw"), tmp_path / "aliccp")
    document = yaml.safe_load(TABLE_3.read_text())
    document |= {"data": [str(tmp_path / "aliccp")], "seeds": [1, 2], "redraws": 20, "tuning": None}
    document["common"]["model"] |= {"expert_hidden": [8], "latent_hidden": [8]}
    document["common"]["training"]["batch_size"] = 512
    document["models"] = {name: document["models"][name] for name in ("MMOE", "PLE-DLEN")}
    (tmp_path / "table-3.yaml").write_text(yaml.safe_dump(document))
    assert main(["compare", "--config", str(tmp_path / "table-3.yaml"), "--out", str(tmp_path), "--threads", "1"]) == 0
    results = json.loads((tmp_path / "table-3" / "results" / "results.json").read_text())
    labels = np.asarray(read_prepared(tmp_path / "aliccp").split("test").labels)
    clicked = labels[:, 0] == 1
    assert results["given"]["buy_given_click"]["rows"] == clicked.sum()
    for model in ("MMOE", "PLE-DLEN"):
        (path,) = (tmp_path / "table-3" / "runs" / model / "aliccp").glob("seed-2-*/test.safetensors")
        p = read_tensors(path)[0]["p"].numpy()[clicked]
        wanted = roc_auc_score(labels[clicked, 1], p[:, 1] / p[:, 0])
        found = results["models"][model]["tasks"]["buy_given_click"]["auc_by_seed"][1]
        assert found == pytest.approx(wanted, abs=1e-6)
        tasks = results["models"][model]["tasks"]
        assert tasks["mean"]["auc"] == pytest.approx((tasks["click"]["auc"] + tasks["buy"]["auc"]) / 2)
    text = (tmp_path / "table-3" / "results" / "results.md").read_text()
    assert "P(buy) / P(click)" in text and "| MMOE-DLEN | 0.6245 | 0.6282 |" in text
