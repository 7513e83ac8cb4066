"""Settling: what it finds, that the network then gives it, and that a kill changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from tests.training.small_runs import SMALL, trainer_of
from training import train
from training.batches import gather
from training.dataset import read_prepared
from training.errors import ConfigInvalid
from training.losses import joint
from training.run import MODEL_FILE, RESULT_FILE, read_run
from training.settle import settle
from training.train import Trainer


def trainer(folder, prepared, **changes) -> Trainer:
    model = changes.pop("model", "dlen-mmoe")
    return trainer_of(folder, read_prepared(prepared), model, SMALL | {"training.epochs": 1} | changes)


@pytest.fixture(scope="module", params=[False, True], ids=["towers", "wide"])
def trained(request, prepared, tmp_path_factory) -> Trainer:
    made = trainer(tmp_path_factory.mktemp("settle") / "run", prepared, **{"model.wide": request.param})
    made.fit()
    return made


def logits_and_labels(made: Trainer, network):
    batch = gather(made.validation, slice(0, made.validation.rows), made.tasks)
    with torch.no_grad():
        return network.eval()(batch.codes_BC, batch.values_BV), batch.labels_BT


def test_the_network_gives_the_scaled_and_shifted_logits_and_the_likelihood_told(trained):
    network = read_run(trained.run.folder).trained_network()
    before, labels = logits_and_labels(trained, network)
    found = settle(network, trained.validation, trained.tasks)
    after, _ = logits_and_labels(trained, network)
    tasks = labels.shape[1]
    scales, offsets = torch.tensor(found.scales), torch.tensor(found.offsets)
    torch.testing.assert_close(after.h_B, before.h_B * scales[0] + offsets[0], atol=1e-4, rtol=1e-4)
    of_f, of_g = slice(1, 1 + tasks), slice(1 + tasks, None)
    torch.testing.assert_close(after.f_BT, before.f_BT * scales[of_f] + offsets[of_f], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.g_BT, before.g_BT * scales[of_g] + offsets[of_g], atol=1e-4, rtol=1e-4)
    assert float(joint(before, labels)) == pytest.approx(found.before, abs=1e-5)
    assert float(joint(after, labels)) == pytest.approx(found.after, abs=1e-5)
    assert found.after < found.before


def test_settling_again_moves_next_to_nothing(trained):
    network = read_run(trained.run.folder).trained_network()
    settle(network, trained.validation, trained.tasks)
    settled, _ = logits_and_labels(trained, network)
    settle(network, trained.validation, trained.tasks)
    again, _ = logits_and_labels(trained, network)
    assert (torch.sigmoid(again.h_B) - torch.sigmoid(settled.h_B)).abs().mean() < 0.05  # the prior moves with it


@pytest.mark.parametrize("level", [-2.0, 2.0])
def test_a_level_of_p_up_that_training_left_wrong_is_found(trained, level):
    network = read_run(trained.run.folder).trained_network()
    settle(network, trained.validation, trained.tasks)
    wanted, _ = logits_and_labels(trained, network)
    with torch.no_grad():
        network.head.latent_bias.add_(level)
    wrong, _ = logits_and_labels(trained, network)
    settle(network, trained.validation, trained.tasks)
    found, _ = logits_and_labels(trained, network)
    mean, off = torch.sigmoid(wanted.h_B).mean(), (torch.sigmoid(wrong.h_B) - torch.sigmoid(wanted.h_B)).mean().abs()
    assert (torch.sigmoid(found.h_B).mean() - mean).abs() < off / 5


def test_a_run_killed_after_settling_settles_once(prepared, tmp_path, monkeypatch):
    wanted = {"training.settle": True}
    trainer(tmp_path / "whole", prepared, **wanted).fit()
    write_file = train.write_file

    def kill(path, content: bytes) -> None:
        if path.name == RESULT_FILE:
            raise SystemExit(137)
        write_file(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(train, "write_file", kill)
        with pytest.raises(SystemExit):
            trainer(tmp_path / "killed", prepared, **wanted).fit()
    result = trainer(tmp_path / "killed", prepared, **wanted).fit()
    assert result["settled"]["joint_loss"][1] < result["settled"]["joint_loss"][0]
    whole, killed = ((tmp_path / name / MODEL_FILE).read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert json.loads((tmp_path / "whole" / RESULT_FILE).read_text())["settled"] == result["settled"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mmoe", "training.settle": True},
        {"training.settle": True, "training.loss": "marginal"},
        {"training.settle": True, "training.sharded_tables": True},
    ],
)
def test_settling_what_has_no_joint_likelihood_is_refused(prepared, tmp_path, changes):
    with pytest.raises(ConfigInvalid, match="settle"):
        trainer(tmp_path / "run", prepared, **changes)
