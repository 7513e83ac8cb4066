"""Gradients of a network that several ranks train: the mean over ranks, dense or of the touched embedding rows only."""

from __future__ import annotations

import warnings
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from training.models.network import Network
from training.ranks import Ranks


def data_parallel(network: Network) -> DistributedDataParallel:
    """Return the network with the mean over ranks as its gradients.

    Those of sparse tables are left to `sum_table_gradients`; those of sharded ones are means already.
    """
    if network.inputs.sparse_gradients or network.inputs.lookups:
        tables = [f"inputs.tables.{size}" for size in network.inputs.tables]
        wrapper: Any = DistributedDataParallel
        wrapper._set_params_and_buffers_to_ignore_for_model(network, tables)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of axes of length 1
    return DistributedDataParallel(network, forward_sync_buffers=False)


def sum_table_gradients(network: Network, ranks: Ranks) -> None:
    """Set the sparse gradients of the embedding tables to their mean over ranks."""
    for table in network.inputs.tables.parameters():
        assert table.grad is not None
        table.grad = ranks.sum(table.grad.coalesce()) / ranks.count
