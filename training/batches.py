"""Batches of encoded rows in a seeded order, gathered from memory-mapped columns without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.dataset import Split
from training.ranks import Ranks

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Batch:
    """Model input and labels of B rows.

    Attributes:
        codes_BC: int32 [B, C].
        values_BV: float32 [B, V].
        labels_BT: float32 [B, T].
        weight: of this rank's mean in the mean over ranks that is the mean over the whole batch's rows.
        log_seconds_B: float32 [B], log(1 + dwell), NaN where not known; None where the data have no dwell.
    """

    codes_BC: Tensor
    values_BV: Tensor
    labels_BT: Tensor
    weight: float = 1.0
    log_seconds_B: Tensor | None = None


class ShuffledBatches:
    """The rows of a split in an order fixed by seed and epoch; the last batch may be short.

    The order and the batches are the same for any number of ranks. A rank reads its share of each batch only.
    """

    def __init__(
        self, split: Split, tasks: list[int], batch_size: int, seed: int, ranks: Ranks, share: float = 1.0
    ) -> None:
        """Take the label columns `tasks` of a share of the rows of `split`, the same rows in every epoch.

        Smaller shares of one seed lie within larger ones.
        """
        self.split, self.tasks, self.batch_size, self.seed, self.ranks = split, tasks, batch_size, seed, ranks
        self.rows = max(1, round(share * split.rows))
        self._drawn = None
        if self.rows < split.rows:  # three numbers: no epoch's order is drawn from these
            self._drawn = np.random.default_rng([seed, 0, 1]).permutation(split.rows)[: self.rows]
        self.count = -(-self.rows // batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of the batches of an epoch, from number `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        if self._drawn is not None:
            order = self._drawn[order]
        for number in range(start, self.count):
            rows = np.sort(order[number * self.batch_size : (number + 1) * self.batch_size])
            own = rows[self.ranks.share(len(rows))]
            weight = len(own) * self.ranks.count / len(rows)  # exactly 1 for one rank
            # a rank without a row in a very short batch still takes part, with weight 0
            yield gather(self.split, own if len(own) else rows[:1], self.tasks, self.ranks.device, weight)


def gather(
    split: Split,
    rows: NDArray[np.int64] | slice,
    tasks: list[int],
    device: torch.device | None = None,
    weight: float = 1.0,
) -> Batch:
    """Return the given rows as a batch on a device (default: the CPU)."""
    labels = _copy(split.labels, rows)[:, tasks]
    tensors = (
        torch.from_numpy(_copy(split.codes, rows)),
        torch.from_numpy(_copy(split.values, rows)),
        torch.from_numpy(labels.astype(np.float32)),
    )
    codes, values, labels_BT = tensors if device is None else (tensor.to(device) for tensor in tensors)
    if split.dwell is None:
        return Batch(codes, values, labels_BT, weight)
    log_seconds = torch.from_numpy(np.log1p(_copy(split.dwell, rows)))
    return Batch(codes, values, labels_BT, weight, log_seconds if device is None else log_seconds.to(device))


def _copy(columns: NDArray[Number], rows: NDArray[np.int64] | slice) -> NDArray[Number]:
    """Return a copy of some rows; `take` needs a fourth of the time of an index of rows."""
    return np.array(columns[rows]) if isinstance(rows, slice) else np.asarray(columns.take(rows, axis=0))
