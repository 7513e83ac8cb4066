"""A share of the training rows: which rows are drawn, by seed, and that a run killed on them goes on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import main
from training.batches import ShuffledBatches
from training.config import read_config
from training.dataset import Split
from training.errors import ConfigInvalid
from training.ranks import Ranks

ALONE = (Ranks(),)


def rows_of(rows, share, seed=3, epoch=0, ranks=ALONE, batch_size=7):
    """Return the row numbers that an epoch reads, over all ranks, with each rank's weight above 0."""
    codes = np.arange(rows, dtype=np.int32)[:, None]
    split = Split(codes, np.zeros((rows, 0), np.float32), np.ones((rows, 1), np.uint8), None)
    batches = [ShuffledBatches(split, [0], batch_size, seed, rank, share) for rank in ranks]
    return [int(row) for made in batches for batch in made.epoch(epoch) if batch.weight for row in batch.codes_BC]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 200), share=st.floats(0.01, 1.0), count=st.integers(1, 3))
def test_every_epoch_and_any_number_of_ranks_reads_the_same_share_of_the_rows_once(rows, share, count):
    found = rows_of(rows, share)
    assert len(found) == max(1, round(share * rows)) == len(set(found))
    assert set(rows_of(rows, share, epoch=1)) == set(found)
    assert sorted(rows_of(rows, share, ranks=[Ranks(rank, count) for rank in range(count)])) == sorted(found)


def test_smaller_shares_lie_within_larger_ones_and_another_seed_draws_others():
    tenth, half = set(rows_of(1000, 0.1)), set(rows_of(1000, 0.5))
    assert tenth < half
    assert half != set(rows_of(1000, 0.5, seed=4))
    assert np.mean(sorted(half)) == pytest.approx(500, abs=40)  # from everywhere


def test_all_rows_come_in_the_order_of_a_run_without_a_share():
    order = np.random.default_rng([3, 0]).permutation(50)
    assert rows_of(50, 1.0) == [row for start in range(0, 50, 7) for row in sorted(order[start : start + 7])]


def test_a_share_outside_of_0_to_1_is_refused():
    for share in (0, 1.5):
        with pytest.raises(ConfigInvalid, match=r"training\.rows_share"):
            read_config(None, None, {"training.rows_share": share})


def test_the_command_takes_the_share_and_names_its_rows(prepared, tiny, tmp_path, capsys):
    arguments = ["train", "--data", str(prepared), "--out", str(tmp_path / "run"), *tiny]
    assert main([*arguments, "--set", "rows_share=0.1"]) == 0
    shown = capsys.readouterr().out
    rows = round(0.1 * len(np.load(prepared / "train" / "labels.npy")))
    assert f"on {rows:,} rows" in shown
    assert "best validation loss" in shown
    assert main(arguments) == 2  # all rows are another run
    assert "rows_share: got a run with 0.1, want 1.0" in capsys.readouterr().err
