"""Validation: cross-entropy and predictions of a split, each rank measuring its share of the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from training.batches import gather
from training.dataset import Split
from training.losses import cross_entropy
from training.models.network import Network
from training.predict import ROWS_AT_ONCE
from training.ranks import Ranks


def measure(network: Network, split: Split, tasks: list[int], ranks: Ranks) -> tuple[Tensor, Tensor | None]:
    """Return each task's mean cross-entropy of P(t) over a split [T], and P(t) of its rows [rows, T].

    The means are the same bits on every rank; P(t) comes to the first one only.
    """
    network.eval()
    own = ranks.share(split.rows)
    sums, pieces = torch.zeros(len(tasks), dtype=torch.float64), [torch.zeros(0, len(tasks))]
    with torch.inference_mode():
        # as many turns on each rank: tables that are shared out are looked up together, maybe for no row of mine
        for start in range(own.start, own.start + -(-split.rows // ranks.count), ROWS_AT_ONCE):
            rows = slice(min(start, own.stop), min(start + ROWS_AT_ONCE, own.stop))
            batch = gather(split, rows, tasks, ranks.device)
            logits = network(batch.codes_BC, batch.values_BV)
            if rows.start == rows.stop:
                continue
            sums += cross_entropy(logits, batch.labels_BT).double().cpu() * len(batch.labels_BT)
            pieces.append(logits.probabilities().p_BT.float().cpu())
        return ranks.sum(sums) / split.rows, ranks.gather(torch.cat(pieces), split.rows)
