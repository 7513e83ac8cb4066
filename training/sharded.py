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
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.errors import ConfigInvalid
from training.models.network import Network
from training.ranks import Ranks
from training.tensors import Pieces, in_file_order, read_rows

_PREFIX = "inputs.tables."
_ROWS_SENT = 1 << 16


def own_rows(rows: int, ranks: Ranks) -> slice:
    """Return which of so many rows are this rank's: TorchRec's blocks, all alike, the last ones shorter or empty."""
    block = -(-rows // ranks.count)
    return slice(min(block * ranks.rank, rows), min(block * (ranks.rank + 1), rows))


def shard_tables(network: Network, ranks: Ranks) -> None:
    """Look up the rows of other ranks too; the network's tables hold this rank's rows only.

    Raises:
        ConfigInvalid: torchrec is not installed.
    """
    for size, table in list(network.inputs.tables.items()):
        sharded = _Sharded(table.detach(), network.inputs.table_rows[int(size)], ranks)
        network.inputs.lookups[size] = sharded
        network.inputs.tables[size] = sharded.own


def whole_tables(tensors: dict[str, Tensor], network: Network, ranks: Ranks) -> dict[str, Tensor | Pieces]:
    """Return tensors by name, with the whole of a table where they hold this rank's rows of it."""
    whole: dict[str, Tensor | Pieces] = {}
    for name, tensor in tensors.items():
        shape = _table_shape(name, network)
        whole[name] = tensor if shape is None else Pieces(shape, tensor.dtype, partial(_pieces, tensor, shape, ranks))
    return whole


def send_pieces(tensors: dict[str, Tensor | Pieces]) -> None:
    """Send the first rank what it writes: on every other rank, while that one does."""
    for _, tensor in in_file_order(tensors):
        if isinstance(tensor, Pieces):
            for _ in tensor.pieces():
                pass


def read_own(path: Path, network: Network, ranks: Ranks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header of a file, with this rank's rows, flat, in place of the whole tables.

    Raises:
        RunInvalid: the file is missing or does not read.
    """
    shapes: dict[str, tuple[int, int]] = {}

    def rows_of(name: str) -> slice | None:
        shape = _table_shape(name, network)
        if shape is None:
            return None
        shapes[name] = shape
        return own_rows(shape[0], ranks)

    tensors, metadata = read_rows(path, rows_of)
    return {name: tensor.flatten() if name in shapes else tensor for name, tensor in tensors.items()}, metadata


def _pieces(own: Tensor, shape: tuple[int, int], ranks: Ranks) -> Iterator[Tensor]:
    """Yield the rows of a table in order on the first rank; on another one send it the rows that are here."""
    for owner in range(ranks.count):
        rows = own_rows(shape[0], replace(ranks, rank=owner))
        for start in range(rows.start, rows.stop, _ROWS_SENT):
            count = min(_ROWS_SENT, rows.stop - start)
            if owner == ranks.rank:
                at = (start - rows.start) * shape[1]
                piece = own.detach()[at : at + count * shape[1]].cpu().view(count, shape[1])
                if not ranks.is_first:
                    dist.send(piece.contiguous(), 0)
                else:
                    yield piece
            elif ranks.is_first:
                piece = torch.empty(count, shape[1], dtype=own.dtype)
                dist.recv(piece, owner)
                yield piece


def _table_shape(name: str, network: Network) -> tuple[int, int] | None:
    """Return rows and width of the table that a tensor belongs to: a weight, or a moment of it."""
    size = name.partition(_PREFIX)[2]
    if name.startswith("optimizer.0.") and not name.endswith(".step"):
        sizes = list(network.inputs.tables)  # the first parameters of the first optimiser
        index = int(name.split(".")[2])
        size = sizes[index] if index < len(sizes) else ""
    lookup = network.inputs.lookups.get(size)
    return lookup.shape if isinstance(lookup, _Sharded) else None


class _Sharded:
    """One table over all ranks.

    Attributes:
        shape: rows and width of the whole table.
        own: this rank's rows, flat.
    """

    def __init__(self, own: Tensor, rows: int, ranks: Ranks) -> None:
        self.shape, self.ranks = (rows, own.shape[1]), ranks
        self._torchrec = _torchrec()
        self._module = self._sharded_module()
        (slice_,) = self._module.parameters()
        self.own: nn.Parameter = slice_._original_tensor
        with torch.no_grad():
            self.own.copy_(own.flatten())

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
