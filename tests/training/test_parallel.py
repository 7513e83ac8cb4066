"""Several processes training one run: real ones under torchrun, against one process with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import main
from training.batches import ShuffledBatches
from training.config import read_config
from training.dataset import Split, read_prepared
from training.describe import describe_run
from training.errors import ConfigInvalid
from training.ranks import Ranks, joined
from training.run import create_run, read_run
from training.train import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
BATCH = 1031
SETTINGS = f"expert_hidden=[16,8] latent_hidden=[16,8] experts=3 epochs=2 batch_size={BATCH} evaluations_per_epoch=2"
MIXED, SHARDED = "loss=mixed sparse_tables=true", "sharded_tables=true dropout=0"
DIES_BEFORE = 12  # of 18 steps: in the second epoch, past a validation and a save
PATIENCE_S = 540

pytestmark = pytest.mark.timeout(600)


def arguments(prepared: Path, out: Path, more: str = "") -> list[str]:
    settings = [argument for setting in f"{SETTINGS} {more}".split() for argument in ("--set", setting)]
    return ["train", "--data", str(prepared), "--out", str(out), "--threads", "1", "--device", "cpu", *settings]


def process(*command: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False
    )


def history(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "history.jsonl").read_text().splitlines()]


def assert_same(found: Path, expected: Path) -> None:
    assert history(found) == pytest.approx(history(expected), abs=1e-6)
    weights = [read_run(folder).trained_network().state_dict() for folder in (found, expected)]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    """Return the run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(arguments(prepared, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def two_ranks(prepared, tmp_path_factory):
    """Return a folder of runs by two ranks each: `mixed`, `sharded` (killed and resumed), `warm` from the first."""
    folder = tmp_path_factory.mktemp("two-ranks")
    jobs = [
        {"die_before": at, "log": str(folder / f"{log}.log"), "arguments": arguments(prepared, folder / name, more)}
        for log, name, more, at in (
            ("mixed", "mixed", MIXED, None),
            ("killed", "sharded", SHARDED, DIES_BEFORE),
            ("resumed", "sharded", SHARDED, None),
            ("warm", "warm", f"{SHARDED} start_from={folder / 'mixed'}", None),
        )
    ]
    done = process(sys.executable, Path(__file__).with_name("forked_ranks.py"), json.dumps(jobs))
    shown = [path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))]
    assert done.returncode == 0, "\n".join([done.stderr[-3000:], *shown])
    return folder


def test_two_processes_train_what_one_trains(prepared, two_ranks, tmp_path):
    assert read_prepared(prepared).split("train").rows % BATCH % 2 == 1  # the last batch splits unevenly
    assert (two_ranks / "mixed.log").read_text().count("best validation loss") == 1  # one process speaks
    assert main(arguments(prepared, tmp_path / "one", MIXED)) == 0
    assert_same(two_ranks / "mixed", tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (two_ranks / "mixed").iterdir()} == names


def test_a_killed_rank_ends_the_run_and_the_same_command_resumes_to_the_same_end(prepared, alone, tmp_path):
    """Under torchrun itself, with whole tables."""
    command = arguments(prepared, tmp_path / "killed")
    died = process(*TORCHRUN, Path(__file__).with_name("dying_rank.py"), DIES_BEFORE, *command)
    assert died.returncode != 0
    assert "SIGKILL" in died.stderr
    assert not read_run(tmp_path / "killed").is_finished
    resumed = process(*TORCHRUN, "-m", "cli", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert_same(tmp_path / "killed", alone)


def test_tables_shared_out_over_ranks_train_as_whole_ones_do_and_resume(two_ranks, alone):
    assert "best validation loss" not in (two_ranks / "killed.log").read_text()
    assert "resumed at step" in (two_ranks / "resumed.log").read_text()
    assert_same(two_ranks / "sharded", alone)


def test_ranks_that_hold_some_rows_start_from_an_earlier_run_as_one_process_does(prepared, two_ranks, tmp_path):
    assert (two_ranks / "warm.log").read_text().count("start from") == 1
    assert main(arguments(prepared, tmp_path / "one", f"{SHARDED} start_from={two_ranks / 'mixed'}")) == 0
    assert_same(two_ranks / "warm", tmp_path / "one")


def test_sharded_tables_without_torchrec_name_the_extra(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    data = read_prepared(prepared)
    config = read_config(None, None, {"training.sharded_tables": True})
    run = create_run(tmp_path / "run", describe_run(config, data), data.schema)
    with pytest.raises(ConfigInvalid, match=r"sharded_tables: got no package torchrec.*the extra torchrec"):
        Trainer(run, data, print, lambda n, of: None, Ranks(0, 2))


class Recorded:
    """An array that notes which rows were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.read = array, []

    def take(self, rows, axis):
        self.read.extend(rows.tolist())
        return self.array.take(rows, axis)

    def __len__(self) -> int:
        return len(self.array)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 60), batch_size=st.integers(1, 25), count=st.integers(1, 5))
def test_ranks_read_disjoint_shares_that_together_are_the_batches_of_one(rows, batch_size, count):
    """A rank whose share of a batch is empty reads one row of it, which weighs nothing."""

    def batches(ranks):
        codes = Recorded(np.arange(rows, dtype=np.int32)[:, None])
        split = Split(codes, np.zeros((rows, 0), np.float32), np.ones((rows, 1), np.uint8), None)
        made = list(ShuffledBatches(split, [0], batch_size, 3, ranks).epoch(1))
        return made, codes.read

    whole, _ = batches(Ranks())
    parts = [batches(Ranks(rank, count)) for rank in range(count)]
    for number, batch in enumerate(whole):
        shares = [made[number] for made, _ in parts if made[number].weight]
        assert torch.equal(torch.cat([share.codes_BC for share in shares]), batch.codes_BC)
        assert sum(share.weight for share in shares) == pytest.approx(count)
        mean = sum(share.weight * share.codes_BC.double().mean() for share in shares) / count
        assert mean.item() == pytest.approx(batch.codes_BC.double().mean().item())
    for made, read in parts:
        assert len(read) == sum(len(batch.codes_BC) for batch in made)


def test_ranks_start_from_the_same_weights_and_draw_dropout_of_their_own(prepared, tmp_path):
    data = read_prepared(prepared)
    run = create_run(tmp_path / "run", describe_run(read_config(None, None, {}), data), data.schema)
    weights, drawn = [], []
    for rank in (0, 1, 1):
        weights.append(Trainer(run, data, print, lambda n, of: None, Ranks(rank)).network.state_dict())
        drawn.append(torch.rand(4))
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2])


def test_each_rank_takes_up_its_own_random_state_and_a_new_rank_keeps_its_seed():
    states, drawn = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        drawn.append(torch.rand(3))
    for rank, expected in enumerate(drawn):
        Ranks(rank, 3).restore_random_state(torch.stack(states))
        assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    Ranks(2, 3).restore_random_state(torch.stack(states))
    assert torch.initial_seed() == 5


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with (
        pytest.raises(ConfigInvalid, match="device: got cuda, and torch sees no GPU, want cpu or auto"),
        joined("cuda"),
    ):
        pass
