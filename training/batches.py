"""Batches of encoded rows in a seeded order, gathered from memory-mapped columns without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.dataset import Split


@dataclass(frozen=True)
class Batch:
    """Model input and labels of B rows: codes int32 [B, C], values float32 [B, V], labels float32 [B, T]."""

    codes_BC: Tensor
    values_BV: Tensor
    labels_BT: Tensor


class ShuffledBatches:
    """The rows of a split in an order fixed by seed and epoch; the last batch may be short."""

    def __init__(self, split: Split, tasks: list[int], batch_size: int, seed: int) -> None:
        """Take the label columns `tasks` of `split`."""
        self.split, self.tasks, self.batch_size, self.seed = split, tasks, batch_size, seed
        self.count = -(-split.rows // batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.split.rows)
        for number in range(start, self.count):
            rows = np.sort(order[number * self.batch_size : (number + 1) * self.batch_size])
            yield gather(self.split, rows, self.tasks)


def gather(split: Split, rows: NDArray[np.int64] | slice, tasks: list[int]) -> Batch:
    """Return the given rows as a batch."""
    labels = np.asarray(split.labels[rows])[:, tasks]
    return Batch(
        torch.from_numpy(np.array(split.codes[rows])),
        torch.from_numpy(np.array(split.values[rows])),
        torch.from_numpy(labels.astype(np.float32)),
    )
