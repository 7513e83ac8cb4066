"""Embedding tables split over ranks by rows, with TorchRec: each rank holds, and optimises, its rows only.

The network's table parameter becomes the rank's rows, flat. Look-ups go through TorchRec's row-wise bags of one row
each, dense kernel: on CPUs the fused kernels know no Adam, and the dense sequence look-up aborts (docs/training.md).
Saved files hold whole tables, gathered on the first rank, so that any number of ranks can take them up.
Legend: B batch, C code columns, D embedding.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import ConfigInvalid
from training.models.network import Network
from training.ranks import Ranks

_PREFIX = "inputs.tables."


def shard_tables(network: Network, ranks: Ranks) -> None:
    """Replace the tables of a network by this rank's rows of them; every rank starts from the same whole tables.

    Raises:
        ConfigInvalid: torchrec is not installed.
    """
    for size, table in list(network.inputs.tables.items()):
        sharded = _Sharded(table.detach(), ranks)
        network.inputs.lookups[size] = sharded
        network.inputs.tables[size] = sharded.own


def whole_tables(tensors: dict[str, Tensor], network: Network, ranks: Ranks) -> dict[str, Tensor]:
    """Return tensors by name with the tables' in full on the first rank; elsewhere the others only."""
    whole = {}
    for name, tensor in sorted(tensors.items()):  # ranks meet in one order: a file's tensors come in any
        rows = _table_rows(name, network)
        if rows is None:
            whole[name] = tensor
        elif (gathered := _gathered(tensor, rows, ranks)) is not None:
            whole[name] = gathered
    return whole


def own_rows(tensors: dict[str, Tensor], network: Network, ranks: Ranks) -> dict[str, Tensor]:
    """Return tensors by name with this rank's rows, flat, in place of the whole tables."""
    return {
        name: tensor if (rows := _table_rows(name, network)) is None else tensor[_slice(rows, ranks)].flatten()
        for name, tensor in tensors.items()
    }


def _table_rows(name: str, network: Network) -> tuple[int, int] | None:
    """Return rows and width of the table that a tensor belongs to: a weight, or a moment of it."""
    size = name.partition(_PREFIX)[2]
    if name.startswith("optimizer.0.") and not name.endswith(".step"):
        sizes = list(network.inputs.tables)  # the first parameters of the first optimiser
        index = int(name.split(".")[2])
        size = sizes[index] if index < len(sizes) else ""
    lookup = network.inputs.lookups.get(size)
    return lookup.shape if isinstance(lookup, _Sharded) else None


def _slice(shape: tuple[int, int], ranks: Ranks) -> slice:
    block = -(-shape[0] // ranks.count)  # TorchRec's: all alike, the last one shorter
    return slice(min(block * ranks.rank, shape[0]), min(block * (ranks.rank + 1), shape[0]))


def _gathered(own: Tensor, shape: tuple[int, int], ranks: Ranks) -> Tensor | None:
    block = -(-shape[0] // ranks.count)
    padded = own.new_zeros((block, shape[1]), device="cpu")
    padded.view(-1)[: own.numel()] = own.detach().cpu()
    gathered = ranks.gather(padded, block * ranks.count)
    return None if gathered is None else gathered[: shape[0]]


class _Sharded:
    """One table over all ranks.

    Attributes:
        shape: rows and width of the whole table.
        own: this rank's rows, flat.
    """

    def __init__(self, table: Tensor, ranks: Ranks) -> None:
        self.shape, self.ranks = (table.shape[0], table.shape[1]), ranks
        self._torchrec = _torchrec()
        self._module = self._sharded_module()
        (slice_,) = self._module.parameters()
        self.own: nn.Parameter = slice_._original_tensor
        with torch.no_grad():
            self.own.copy_(table[_slice(self.shape, ranks)].flatten())

    def _sharded_module(self) -> Any:
        rec, (rows, width) = self._torchrec, self.shape
        config = rec.EmbeddingBagConfig(
            name="table", embedding_dim=width, num_embeddings=rows, feature_names=["column"]
        )
        device = self.ranks.device
        bags = rec.EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
        sharder = rec.distributed.embeddingbag.EmbeddingBagCollectionSharder()
        plans = rec.distributed.sharding_plan
        plan = plans.construct_module_sharding_plan(
            bags,
            {"table": plans.row_wise(compute_kernel="dense")},
            sharder,
            local_size=self.ranks.count,
            world_size=self.ranks.count,
            device_type=device.type,
        )
        group = dist.group.WORLD
        return sharder.shard(bags, plan, rec.distributed.types.ShardingEnv.from_process_group(group), device)

    def __call__(self, rows_BC: Tensor) -> Tensor:
        """Return embeddings [B, C, D] of table rows; every rank must call, whatever its B."""
        wanted = rows_BC.flatten()
        most = wanted.new_tensor([len(wanted)])
        dist.all_reduce(most, op=dist.ReduceOp.MAX)  # gloo's sums of bags need the same number on each rank
        padded = torch.cat([wanted, wanted.new_zeros(int(most) - len(wanted))])
        ones = torch.ones(len(padded), dtype=torch.int32, device=padded.device)
        features = self._torchrec.KeyedJaggedTensor.from_lengths_sync(["column"], padded, ones)
        embedded: Tensor = self._module(features).wait().values()
        return embedded[: len(wanted)].view(*rows_BC.shape, -1)


def _torchrec() -> Any:
    logging.getLogger("torchrec").setLevel(logging.ERROR)  # it warns that a dense kernel needs no cache
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fbgemm warns of its own modules when imported
            for part in ("embeddingbag", "sharding_plan", "types"):
                importlib.import_module(f"torchrec.distributed.{part}")
            return importlib.import_module("torchrec")
    except ModuleNotFoundError as exc:
        raise ConfigInvalid(
            "sharded_tables", found=f"no package {exc.name}", expected="the extra torchrec (pip install -e .[torchrec])"
        ) from exc
