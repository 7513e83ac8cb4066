"""The loop: seeds, exact resumption, early stopping, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.files import write_file
from cli import main
from tests.training.small_runs import SMALL, trainer_of
from training import run, train
from training.config import read_config
from training.dataset import read_prepared
from training.errors import ConfigInvalid, TrainingDiverged
from training.models.config import MODEL_NAMES
from training.run import FEATURES_FILE, RUN_FILE, read_run
from training.tensors import read_tensors
from training.train import Trainer

SETTINGS = SMALL | {"model.dropout": 0.1, "training.epochs": 2, "training.average": 0.9}


def trainer(folder, prepared, advance=lambda done, of: None, model="dlen-mmoe", **changes) -> Trainer:
    overrides = SETTINGS | {f"training.{key}": value for key, value in changes.items()}
    return trainer_of(folder, read_prepared(prepared), model, overrides, advance=advance)


def weights(folder) -> dict[str, torch.Tensor]:
    return read_run(folder).trained_network().state_dict()


class Killed(BaseException):
    """Stands for a kill signal: nothing may catch it and carry on."""


@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_killed_at_any_step_resumes_to_the_very_same_weights(prepared, tmp_path, monkeypatch, sparse):
    trainer(tmp_path / "whole", prepared, sparse_tables=sparse).fit()
    expected = weights(tmp_path / "whole")
    monkeypatch.setattr(train, "STATE_INTERVAL_S", 0.0)  # save after every step

    def kill_at(step):
        def advance(done, of):
            if done == step:
                raise Killed

        return advance

    for step in (1, 7, 20):
        with pytest.raises(Killed):
            trainer(tmp_path / "killed", prepared, kill_at(step), sparse_tables=sparse).fit()
        assert not read_run(tmp_path / "killed").is_finished
    trainer(tmp_path / "killed", prepared, sparse_tables=sparse).fit()
    found = weights(tmp_path / "killed")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", [FEATURES_FILE, RUN_FILE])
def test_a_run_killed_while_its_folder_was_made_begins_anew(prepared, tmp_path, monkeypatch, name):
    def write(path, content: bytes) -> None:
        if path.name == name:
            raise SystemExit(137)
        write_file(path, content)

    monkeypatch.setattr(run, "write_file", write)
    with pytest.raises(SystemExit):
        trainer(tmp_path / "run", prepared)
    monkeypatch.undo()
    trainer(tmp_path / "run", prepared)
    assert read_run(tmp_path / "run").description.config.training.batch_size == 512
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_sparse_tables_move_only_the_rows_of_the_batch_and_these_as_dense_ones_do(prepared, tmp_path):
    tables = []
    for name, sparse in (("dense", False), ("sparse", True)):
        made = trainer(tmp_path / name, prepared, sparse_tables=sparse)
        before = {size: table.detach().clone() for size, table in made.network.inputs.tables.items()}
        made.step(next(made.batches.epoch(0)))
        tables.append({size: table.detach() for size, table in made.network.inputs.tables.items()})
    for size, table in tables[1].items():
        squares = made.optimizers[0].state[made.network.inputs.tables[size]]["exp_avg_sq"]
        large = squares > 1e-13  # above Adam's epsilon, which the two add before and after scaling
        assert large.sum() > 50
        steps = [(found - before[size])[large] for found in (table, tables[0][size])]
        torch.testing.assert_close(*steps, rtol=0.1, atol=0)
        moved = (table != before[size]).any(1)
        assert moved.any() and not moved.all()


def test_decay_of_tables_and_sparse_tables_exclude_each_other():
    with pytest.raises(ConfigInvalid, match="embedding_decay must be 0 with sparse_tables"):
        read_config(None, None, {"training.sparse_tables": True, "training.embedding_decay": 0.1})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_bfloat16_rounds_products_and_leaves_logits_and_losses_in_float32(prepared, tmp_path, name):
    losses, logits = {}, {}
    for precision in ("float32", "bfloat16"):
        made = trainer(tmp_path / precision, prepared, model=name, precision=precision)
        made.network.register_forward_hook(lambda network, args, out, key=precision: logits.update({key: out}))
        losses[precision] = made.step(next(made.batches.epoch(0)))
        assert all(
            weight.dtype == torch.float32 for weight in made.network.state_dict().values() if weight.is_floating_point()
        )
    for field in fields(logits["float32"]):
        found = getattr(logits["bfloat16"], field.name)
        assert not isinstance(found, torch.Tensor) or found.dtype == torch.float32
    first = fields(logits["float32"])[0].name
    assert not torch.equal(*(getattr(made, first) for made in logits.values()))
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-3)


def test_a_bfloat16_run_learns_what_a_float32_run_learns(prepared, tmp_path):
    found, expected = (trainer(tmp_path / p, prepared, precision=p).fit() for p in ("bfloat16", "float32"))
    assert found["best"]["loss"] == pytest.approx(expected["best"]["loss"], rel=1e-3)


def test_one_seed_gives_one_result_and_another_seed_another(prepared, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer(tmp_path / name, prepared, seed=seed).fit()
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_training_lowers_the_validation_loss_below_the_base_rates(prepared, tmp_path):
    result = trainer(tmp_path / "run", prepared, epochs=3).fit()
    data = read_prepared(prepared)
    labels = torch.from_numpy(data.split("validation").labels[:, :5].astype("float64"))
    rates = torch.tensor([task.base_rate for task in data.tasks][:5], dtype=torch.float64)
    blind = -(labels * rates.log() + (1 - labels) * (1 - rates).log()).mean(0).sum().item()
    assert result["best"]["loss"] < blind


def test_training_stops_when_validation_no_longer_improves_and_keeps_the_best_weights(prepared, tmp_path):
    result = trainer(
        tmp_path / "run", prepared, epochs=50, learning_rate=0.02, patience=2, average=0.0, batch_size=2048
    ).fit()
    assert result["validations"] < 100
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert result["best"]["loss"] == min(record["loss"] for record in history)


def poisoned_loss(made: Trainer, monkeypatch) -> None:
    monkeypatch.setattr(train, "total", lambda name, logits, *args, **more: logits.h_B.mean() * math.nan)


def poisoned_weights(made: Trainer, monkeypatch) -> None:
    """A gradient that overflows leaves a finite loss and a broken weight."""
    with torch.no_grad():
        made.network.head.weight[0, 0, 0] = math.inf


def poisoned_validation(made: Trainer, monkeypatch) -> None:
    monkeypatch.setattr(train, "measure", lambda *args: (torch.tensor([math.nan]), None))


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (poisoned_loss, r"run: loss at step 6, learning rate 0\.00014: got nan, want a finite number"),
        (poisoned_weights, r"run: weights head\.weight at step 6, learning rate 0\.00012: got nan"),
        (poisoned_validation, r"run: validation loss at step 10, learning rate 0\.0002: got nan"),
    ],
)
def test_a_number_that_is_not_finite_ends_the_run_and_is_never_saved(prepared, tmp_path, monkeypatch, poison, message):
    monkeypatch.setattr(train, "STATE_INTERVAL_S", 0.0)  # save after every step
    folder = tmp_path / "run"
    short = {"batch_size": 1024, "epochs": 1}
    made = trainer(folder, prepared, lambda done, of: poison(made, monkeypatch) if done == 6 else None, **short)
    with monkeypatch.context() as monkeypatch, pytest.raises(TrainingDiverged, match=message):
        made.fit()
    found, _ = read_tensors(folder / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for name, tensor in found.items() if name != "random")
    assert not read_run(folder).is_finished
    trainer(folder, prepared, **short).fit()
    monkeypatch.undo()
    trainer(tmp_path / "whole", prepared, **short).fit()
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(tmp_path / "whole").items())


def test_a_finished_run_is_not_trained_again(prepared, trained, tiny, capsys):
    assert main(["train", "--data", str(prepared), "--out", str(trained), *tiny]) == 0
    assert "already trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "learning_rate=0.1"], "training.learning_rate: got a run with 0.005, want 0.1"),
        (["--set", "learning_rate"], "got no '=', want key=value"),
        (["--set", "lerning_rate=1"], "--set lerning_rate: got an unknown key"),
        (["--set", "epochs=0"], "training.epochs: got 0"),
        (["--model", "transformer"], "model.name: got 'transformer'"),
        (["--set", "task_weights={buy: 2}"], "task_weights.buy: got no such task"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: got No such file"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_code_2(args, message, prepared, trained, tiny, capsys):
    before = sorted(trained.iterdir())
    assert main(["train", "--data", str(prepared), "--out", str(trained), *tiny, *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(trained.iterdir()) == before


def test_data_that_is_not_prepared_is_named(tmp_path, capsys):
    assert main(["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "prepared.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_mean_loss_of_every_ten_steps(prepared, tmp_path, monkeypatch):
    losses: list[float] = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: losses.append(step(self, batch)) or losses[-1])
    trainer(tmp_path / "run", prepared).fit()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("train/loss")
    shown = {event.step: event.value for event in events}
    assert shown == {at: pytest.approx(sum(losses[at - 10 : at]) / 10) for at in range(10, len(losses) + 1, 10)}
