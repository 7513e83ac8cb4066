"""How the item part of x becomes bytes: embeddings column by column, standardised values over several columns.

Every column has its own step, which costs nothing: it is folded into the weights. But an output channel's
weights share one scale, so a column of much wider range than the others would leave them no bits. A
standardised value reaches far beyond where it mostly lies; it is spread over `VALUE_COPIES` columns of a
fraction of its weight, which also makes its steps that much finer. Products of a few more columns are cheap.

Legend: Ki width of the item part of x, Kq byte columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.models.inputs import InputLayer

WEIGHT_STEPS = 127
ITEM_ZERO_POINT = 128
VALUE_COPIES = 2
_TINY = 1e-6

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ItemColumns:
    """Column k holds round(x[source] / divisor + shift), −127…127, one step being worth `worth`.

    The c columns of one value differ in shift only, by 1/c each: floors of y + j/c add up to the floor of
    c·y (Hermite), so together they are the value in steps of divisor / c. They do not lie side by side: equal weights
    of neighbours would have to be half as many steps (`quantise.steps_of`).
    """

    source_K: NDArray[np.int64]
    divisor_K: Floats
    shift_K: Floats
    worth_K: Floats

    def steps(self, x_item: Tensor) -> Tensor:
        """Return the item part of x [B, Ki] in steps [B, Kq]."""
        scaled = x_item[:, torch.from_numpy(self.source_K)] / torch.from_numpy(self.divisor_K)
        return (scaled + torch.from_numpy(self.shift_K)).round().clamp(-WEIGHT_STEPS, WEIGHT_STEPS)


@dataclass(frozen=True)
class ItemRows:
    """Where one item feature's embeddings lie: rows of the table of its size, columns of the item part of x."""

    size: int
    first_row: int
    end_row: int
    at: int
    is_list: bool


def item_rows(inputs: InputLayer) -> list[ItemRows]:
    """Return where each embedded item feature lies, in the order of x."""
    starts: dict[int, set[int]] = {}
    for part in inputs.parts:
        for block in part.blocks:
            starts.setdefault(block.size, set()).update(inputs.offsets[block.start : block.end].tolist())
    found, at = [], 0
    for block in inputs.parts[1].blocks:
        for row in inputs.offsets[block.start : (block.start + 1 if block.is_list else block.end)].tolist():
            end = min((r for r in starts[block.size] if r > row), default=len(inputs.tables[str(block.size)]))
            found.append(ItemRows(block.size, row, end, at, block.is_list))
            at += block.size
    return found


def item_columns(inputs: InputLayer, values: Tensor) -> ItemColumns:
    """Return the byte columns: a table's columns by their largest entry, values by the largest in the rows."""
    part = inputs.parts[1]
    tables = {size: table.detach() for size, table in inputs.tables.items()}
    largest = [tables[str(rows.size)][rows.first_row : rows.end_row].abs().amax(0) for rows in item_rows(inputs)]
    embedded = torch.cat(largest).numpy() if largest else np.zeros(0, dtype=np.float32)
    reach = values[:, part.values_start : part.values_end].abs().amax(0).numpy()
    copies = np.ones(len(embedded) + len(reach), dtype=np.int64)
    copies[len(embedded) :: 2] = VALUE_COPIES  # every other column marks missing values: 0 or 1
    reach = np.where(reach > 0, reach, 1)  # never seen: a mark of missing values, that may still come
    divisor = np.r_[np.maximum(embedded, _TINY) / WEIGHT_STEPS, reach / (WEIGHT_STEPS - 1)].astype(np.float32)
    columns = [np.flatnonzero(copies > turn) for turn in range(VALUE_COPIES)]  # one of each, then the second ones
    source, turn = np.concatenate(columns), np.repeat(np.arange(VALUE_COPIES), [len(column) for column in columns])
    shift = (turn + 0.5) / copies[source] - 0.5
    return ItemColumns(source, divisor[source], shift.astype(np.float32), (divisor / copies).astype(np.float32)[source])
