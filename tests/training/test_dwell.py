"""Dwell from the schema to the report: read, refused, part of the likelihood, learned, and not served."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from cli import main
from simulator.oracle import auc, read_truth
from tests.training.tables import SCHEMA, made, source, table
from training import losses
from training.batches import gather
from training.dataset import read_prepared
from training.errors import ColumnTypeWrong, DatasetSchemaInvalid, LabelInvalid
from training.models.config import ModelConfig
from training.models.dwell import LOG_DEVIATIONS, DwellNormals, DwellTower
from training.models.heads import LatentLogits
from training.predict import predict
from training.prepare import prepare
from training.recovery import truth_of
from training.run import RunDescription, read_run

DWELL = SCHEMA | {"dwell": {"column": "ms", "unit": "ms", "cap_s": 60}}
SMALL = "experts=2 expert_hidden=[16,8] latent_hidden=[16,8] epochs=3 batch_size=256 learning_rate=0.005"


def with_dwell(rows=300):
    stays = [None if i % 5 == 0 else math.nan if i % 5 == 1 else 700.0 * i for i in range(rows)]
    return table(rows).with_columns(pl.Series("ms", stays))


def test_dwell_is_kept_in_seconds_up_to_the_cap_with_holes_where_it_is_missing(tmp_path):
    prepared = made(tmp_path, with_dwell(), DWELL)
    found = np.concatenate([prepared.split(name).dwell for name in ("train", "validation", "test")])
    expected = [math.nan if i % 5 < 2 else min(0.7 * i, 60.0) for i in range(300)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    batch = gather(prepared.split("train"), np.array([0, 7]), [0])
    assert torch.isnan(batch.log_seconds_B[0]) and batch.log_seconds_B[1].item() == pytest.approx(math.log1p(4.9))


def test_a_schema_without_dwell_prepares_what_it_always_did(tmp_path):
    """The fingerprint is a digest of these keys: one more, and every prepared folder would be out of date."""
    prepared = made(tmp_path, table())
    assert source(tmp_path, table()).schema.model_dump(mode="json").keys() == {
        "version", "columns", "split", "tasks", "features"
    }  # fmt: skip
    assert "dwell" not in json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert prepared.split("train").dwell is None
    assert not list((tmp_path / "out").rglob("dwell.npy"))
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", with_dwell(), DWELL)
    assert other.info.fingerprint != prepared.info.fingerprint
    for part in ("codes", "values", "labels", "user"):
        for split in ("train", "validation", "test"):
            assert np.array_equal(getattr(other.split(split), part), getattr(prepared.split(split), part))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([-1.0], LabelInvalid, r"dwell 'ms' row 7: got -1.0, want 0 or more"),
        ([math.inf], LabelInvalid, r"dwell 'ms' row 7: got inf"),
        (["long"], ColumnTypeWrong, r"dwell 'ms': got String, want numbers"),
    ],
)
def test_what_cannot_be_a_dwell_is_refused(tmp_path, values, error, message):
    column = pl.Series("ms", [None] * 7 + values + [None] * 292)
    with pytest.raises(error, match=message):
        prepare(source(tmp_path, table().with_columns(column), DWELL), tmp_path / "out")


def test_a_dwell_that_is_a_feature_is_refused(tmp_path):
    with pytest.raises(DatasetSchemaInvalid, match="dwell must not be a feature, found price"):
        source(tmp_path, table(), SCHEMA | {"dwell": {"column": "price"}})


def emission(rows: int, seed: int, stays: list[float]) -> tuple[LatentLogits, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    h, f, g, mu = (
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in ((rows,), (rows, 3), (rows, 3), (rows, 2))
    )
    normals = DwellNormals(mu, torch.tensor([-0.4, 0.7], dtype=torch.float64, requires_grad=True))
    logits = LatentLogits(h, f, g, torch.tensor([0.2, 0.05, 0.01], dtype=torch.float64), dwell=normals)
    labels = (torch.rand(rows, 3, generator=random) < 0.4).double()
    return logits, labels, torch.tensor(stays, dtype=torch.float64)


def slow_joint(x: LatentLogits, labels: torch.Tensor, stays: torch.Tensor) -> float:
    """Row after row, state after state, product after product."""
    loss = 0.0
    for row in range(len(stays)):
        u = 1 / (1 + math.exp(-x.h_B[row].item()))
        likelihood = 0.0
        for state, prior in enumerate((u, 1 - u)):
            product = prior
            for task in range(3):
                logit = (x.f_BT if state == 0 else x.g_BT)[row, task].item()
                p = (1.0 if state == 0 else x.alpha_T[task].item()) / (1 + math.exp(-logit))
                product *= p if labels[row, task] else 1 - p
            if not math.isnan(stays[row]):
                mean, deviation = x.dwell.mu_B2[row, state].item(), math.exp(x.dwell.log_s_2[state].item())
                z = (stays[row].item() - mean) / deviation
                product *= math.exp(-z * z / 2) / (deviation * math.sqrt(2 * math.pi))
            likelihood += product
        loss -= math.log(likelihood) / len(stays)
    return loss


def test_the_joint_loss_with_dwell_is_a_loop_over_rows_and_states():
    x, labels, stays = emission(6, 1, [0.0, 1.3, math.nan, 4.2, 2.0, math.nan])
    assert losses.joint(x, labels, stays).item() == pytest.approx(slow_joint(x, labels, stays), rel=1e-12)
    mixed = losses.total("mixed", x, labels, joint_share=0.3, log_seconds_B=stays)
    expected = 0.3 * slow_joint(x, labels, stays) + 0.7 * losses.marginal(x, labels).item()
    assert mixed.item() == pytest.approx(expected, rel=1e-12)


def test_rows_without_a_dwell_add_nothing_to_loss_or_gradient():
    x, labels, _ = emission(4, 2, [0.0] * 4)
    without = losses.joint(x, labels)
    with_holes = losses.joint(x, labels, torch.full((4,), math.nan, dtype=torch.float64))
    assert with_holes.item() == without.item()
    with_holes.backward()
    assert not x.dwell.mu_B2.grad.any() and not x.dwell.log_s_2.grad.any()
    assert torch.isfinite(x.h_B.grad).all()


@pytest.mark.parametrize("mean", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("stay", [0.0, 12.0, math.nan])
@pytest.mark.parametrize("place", [-1e3, 0.0, 1e3])
def test_loss_and_gradient_are_finite_at_extremes(mean, stay, place):
    tower = DwellTower(ModelConfig(tower_hidden=(4,), dwell=True), 3)
    with torch.no_grad():
        tower.bias.fill_(mean)
        tower.place_2.fill_(place)
    normals = tower(torch.ones(2, 3))
    assert (normals.log_s_2 >= LOG_DEVIATIONS[0]).all() and (normals.log_s_2 <= LOG_DEVIATIONS[1] + 1e-6).all()
    h = torch.tensor([-60.0, 60.0], requires_grad=True)
    x = LatentLogits(h, torch.full((2, 3), 60.0), torch.full((2, 3), -60.0), torch.full((3,), 0.01), dwell=normals)
    loss = losses.joint(x, torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.full((2,), stay))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(tensor.grad).all() for tensor in (h, *tower.parameters()))


@pytest.fixture(scope="module")
def logs(simulated, tmp_path_factory):
    """Return the simulated log with stays that are longer under UP; a tenth of them is not known."""
    folder = tmp_path_factory.mktemp("dwell") / "logs"
    shutil.copytree(simulated, folder)
    z_N, random = read_truth(folder).z_N, np.random.default_rng(8)
    seconds = np.expm1(np.maximum(0, random.normal(np.where(z_N, 3.0, 1.5), np.where(z_N, 0.7, 0.9))))
    seconds[random.random(len(seconds)) < 0.1] = np.nan
    impressions = pl.read_parquet(folder / "impressions.parquet")
    impressions.with_columns(pl.Series("play_seconds", seconds)).write_parquet(folder / "impressions.parquet")
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema | {"dwell": {"column": "play_seconds"}}))
    return folder


@pytest.fixture(scope="module")
def data(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dwell-data") / "data"
    assert main(["prepare", "--source", "simulator", "--input", str(logs), "--out", str(folder)]) == 0
    return folder


def train(data, out, *more: str):
    settings = [argument for setting in (*SMALL.split(), *more) for argument in ("--set", setting)]
    assert main(["train", "--data", str(data), "--out", str(out), "--threads", "1", *settings]) == 0
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("dwell-runs") / "run", "dwell=true")


def test_planted_dwell_is_found_and_brings_p_up_nearer_to_its_true_level(logs, data, run, tmp_path):
    figures = tmp_path / "figures.json"
    assert main(["evaluate", "--run", str(run), "--data", str(data), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["dwell"]
    assert found["seconds_up"] > 15 > 6 > found["seconds_not_up"]  # planted: e³ − 1 = 19.1 and e^1.5 − 1 = 3.5
    assert found["log_likelihood"] > found["of_one_normal"] + 0.02
    prepared = read_prepared(data)
    test = prepared.split("test")
    assert found["rows"] == np.count_nonzero(~np.isnan(test.dwell)) < test.rows
    plain = train(data, tmp_path / "plain")
    splits = ("validation", "test")  # one alone is 1,200 rows
    z_N = np.concatenate([truth_of(logs, prepared, name).z_N for name in splits])
    p_up = {}
    for folder in (run, plain):
        network = read_run(folder).trained_network()
        p_up[folder] = np.concatenate([predict(network, prepared.split(name)).p_up for name in splits])
    assert auc(p_up[run], z_N) > auc(p_up[plain], z_N) - 0.01
    assert abs(p_up[run].mean() - z_N.mean()) < abs(p_up[plain].mean() - z_N.mean())


def test_training_starts_at_mean_and_deviation_of_the_training_rows(data, run):
    network = read_run(run).new_network()
    logs = np.log1p(np.asarray(read_prepared(data).split("train").dwell, dtype=np.float64))
    logs = logs[~np.isnan(logs)]
    assert network.head.dwell.bias.tolist() == pytest.approx([logs.mean()] * 2, rel=1e-5)
    deviations = network.head.dwell(torch.zeros(1, network.inputs.width)).log_s_2.exp()
    assert deviations.tolist() == pytest.approx([logs.std()] * 2, rel=1e-4)


def test_a_dwell_run_exports_and_its_graph_gives_the_networks_outputs(data, run, tmp_path, capsys):
    bundle = tmp_path / "models" / "dwell" / "1"
    assert main(["export", "--run", str(run), "--out", str(bundle)]) == 0  # refuses more than 1e-5 itself
    documents = []
    for asked in (["--run", str(run)], ["--bundle", str(bundle)]):
        file = tmp_path / "figures.json"
        assert main(["evaluate", *asked, "--data", str(data), "--json", str(file)]) == 0
        documents.append(json.loads(file.read_text()))
    assert "dwell" not in documents[1]
    assert documents[1]["p_up"]["mean"] == pytest.approx(documents[0]["p_up"]["mean"], abs=1e-5)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [tensor["name"] for tensor in manifest["outputs"]] == ["p", "p_joint", "p_up"]
    assert manifest["parity"]["max_abs_error"] <= 1e-5
    assert "s given UP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["dwell=true", "loss=marginal"], "model.dwell: got the marginal loss, joint_share 0, want the joint or the"),
        (["dwell=true", "loss=mixed", "joint_share=0"], "model.dwell: got the mixed loss, joint_share 0, want"),
        (["dwell=true", "name=mmoe"], "dwell needs a model with P(UP), not mmoe"),
    ],
)
def test_dwell_without_a_joint_likelihood_is_refused_by_name(data, tmp_path, capsys, more, message):
    settings = [argument for setting in more for argument in ("--set", setting)]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *settings]) == 2
    assert message in capsys.readouterr().err


def test_dwell_without_such_data_is_refused_by_name(prepared, tmp_path, capsys):
    assert main(["train", "--data", str(prepared), "--out", str(tmp_path / "run"), "--set", "dwell=true"]) == 2
    assert f"model.dwell: got no dwell in {prepared}, want data prepared with" in capsys.readouterr().err


def test_a_run_without_dwell_is_described_as_before(trained):
    document = json.loads((trained / "run.json").read_text())
    assert "dwell" not in document
    assert "dwell" not in RunDescription.model_validate(document).model_dump()
