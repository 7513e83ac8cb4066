"""The input layer: encoded features → x, by embedding tables and values as they are, and where each lies in it.

Legend: B batch, C code columns, V value columns and a table's rows, D embedding, K input width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.encode import code_features, value_features
from bundle.features import MISSING_CODE, CategoricalListFeature, Feature, FeatureSchema
from training import loops

_ROWS_DRAWN, _LEAST_DRAWN = 1 << 16, 16
"""Rows drawn at a time: torch draws normal numbers in blocks of 16, fewer ones in another way."""


@dataclass(frozen=True)
class Block:
    """Neighbouring code columns embedded alike: single values side by side, or the slots of one list.

    Attributes:
        start, end: code columns.
        size: embedding size.
        is_list: embedded as the mean over the slots that hold a value.
    """

    start: int
    end: int
    size: int
    is_list: bool

    @property
    def width(self) -> int:
        """Width of the block in the network's input."""
        return self.size if self.is_list else self.size * (self.end - self.start)


@dataclass(frozen=True)
class PartLayout:
    """Where one part of the schema lies in the code, value and input columns."""

    blocks: tuple[Block, ...]
    values_start: int
    values_end: int

    @property
    def width(self) -> int:
        """Width of the part in the network's input."""
        return sum(block.width for block in self.blocks) + self.values_end - self.values_start


class InputLayer(nn.Module):
    """Encoded features → x [B, K] = [request part | item part]; in a part embeddings first, then values.

    All features of one embedding size share one table; `offsets` [C] gives each code column's first row. With
    `sparse_gradients` a table's gradient holds the rows of the batch only. `lookups` stand in for the tables of their
    sizes: table rows [B, C] → [B, C, D]; then a table may hold only the rows that `own_rows` gives of those there
    are, `table_rows` by size.
    """

    offsets: Tensor

    def __init__(
        self, schema: FeatureSchema, embedding_std: float, own_rows: Callable[[int], slice] | None = None
    ) -> None:
        super().__init__()
        self.sparse_gradients = False
        self.lookups: dict[str, Callable[[Tensor], Tensor]] = {}
        self.parts, column_codes, column_sizes = _layout(schema)
        offsets, self.table_rows = _table_rows(column_codes, column_sizes)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64))
        self.tables = nn.ParameterDict(
            {
                str(size): nn.Parameter(normal_rows(count, size, own_rows) * embedding_std)
                for size, count in self.table_rows.items()
            }
        )
        self.width = sum(part.width for part in self.parts)
        self._pieces = _pieces(self.parts)

    def forward(self, codes_BC: Tensor, values_BV: Tensor) -> Tensor:
        """Return x [B, K]; each table is read once, so that its gradient is written once."""
        rows_BC = codes_BC + self.offsets
        embedded = {size: iter(self._embed(rows_BC, int(size))) for size in self.tables}
        pieces = [
            _flat(piece, codes_BC, next(embedded[str(piece.size)]))
            if isinstance(piece, Block)
            else values_BV[:, slice(*piece)]
            for piece in self._pieces
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _embed(self, rows_BC: Tensor, size: int) -> Sequence[Tensor]:
        """Return [B, columns, D] of every block of one size, in order."""
        blocks = [piece for piece in self._pieces if isinstance(piece, Block) and piece.size == size]
        runs = [rows_BC[:, start:end] for start, end in _runs(blocks)]
        rows = runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)
        if (lookup := self.lookups.get(str(size))) is not None:
            embedded = lookup(rows)
        else:
            embedded = self._rows_of(self.tables[str(size)], rows)
        if len(blocks) == 1:
            return [embedded]
        pieces: Sequence[Tensor] = torch.split(embedded, [block.end - block.start for block in blocks], dim=1)
        return pieces

    def _rows_of(self, table: Tensor, rows: Tensor) -> Tensor:
        """Return [B, C, D]; on a CPU by `index_select`, whose gradient takes half the time of `embedding`'s.

        In training its gradient is added up by a compiled loop, which takes a third of that.
        """
        if self.sparse_gradients or table.is_cuda:
            return functional.embedding(rows, table, sparse=self.sparse_gradients)
        if self.training and loops.compiled is not None and table.dtype == torch.float32:
            found: Tensor = _TableRows.apply(table, rows.flatten())  # type: ignore[no-untyped-call]
            return found.view(*rows.shape, -1)
        return table.index_select(0, rows.flatten()).view(*rows.shape, -1)


class _TableRows(torch.autograd.Function):
    """Rows of a table by number, on a CPU."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, rows_N: Tensor) -> Tensor:
        """Return float32 [N, D]."""
        ctx.save_for_backward(rows_N)
        ctx.table_rows = len(table_VD)
        return table_VD.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the table's gradient [V, D]."""
        (gradient_ND,), (rows_N,) = gradients, ctx.saved_tensors
        table_VD = gradient_ND.new_zeros(ctx.table_rows, gradient_ND.shape[1])
        assert loops.compiled is not None
        loops.compiled.add_rows(table_VD.numpy(), rows_N.contiguous().numpy(), gradient_ND.contiguous().numpy())
        return table_VD, None


def normal_rows(rows: int, size: int, own_rows: Callable[[int], slice] | None = None) -> Tensor:
    """Return `torch.randn(rows, size)`, or the rows of it that `own_rows(rows)` gives, never holding all of it."""
    if own_rows is None:
        return torch.randn(rows, size)
    own = own_rows(rows)
    kept = torch.empty(own.stop - own.start, size)
    for start in range(0, max(rows - _LEAST_DRAWN, 1), _ROWS_DRAWN):
        end = start + _ROWS_DRAWN if start + _ROWS_DRAWN < rows - _LEAST_DRAWN else rows
        drawn = torch.randn(end - start, size)
        first, last = max(own.start, start), min(own.stop, end)
        if first < last:
            kept[first - own.start : last - own.start] = drawn[first - start : last - start]
    return kept


def _layout(schema: FeatureSchema) -> tuple[tuple[PartLayout, ...], list[tuple[str, int]], list[int]]:
    """Return the two parts' layouts, and per code column its feature with number of codes, and its size."""
    parts: list[PartLayout] = []
    columns: list[tuple[str, int]] = []
    sizes: list[int] = []
    value_at = 0
    for features in (schema.request_part, schema.item_part):
        start = len(columns)
        for feature in code_features(features):
            columns.extend([(feature.name, _codes(feature))] * feature.columns)
            sizes.extend([feature.embedding_size] * feature.columns)
        width = 2 * len(value_features(features))
        blocks = tuple(_blocks(code_features(features), start))
        parts.append(PartLayout(blocks, value_at, value_at + width))
        value_at += width
    return tuple(parts), columns, sizes


def _pieces(parts: Sequence[PartLayout]) -> list[Block | tuple[int, int]]:
    """Return what x consists of, in order: blocks, joined where they can be, and (start, end) of value columns."""
    pieces: list[Block | tuple[int, int]] = []
    for part in parts:
        for block in part.blocks:
            last = pieces[-1] if pieces else None
            if isinstance(last, Block) and _continues(last, block):
                pieces[-1] = Block(last.start, block.end, block.size, is_list=False)
            else:
                pieces.append(block)
        if part.values_end > part.values_start:
            pieces.append((part.values_start, part.values_end))
    return pieces


def _continues(last: Block, block: Block) -> bool:
    """Say whether two blocks are neighbours embedded alike, and no lists."""
    return not last.is_list and not block.is_list and last.size == block.size and last.end == block.start


def _blocks(features: Sequence[Feature], at: int) -> list[Block]:
    """Return the blocks of one part whose code columns begin at `at`."""
    blocks: list[Block] = []
    for feature in features:
        is_list = isinstance(feature, CategoricalListFeature)
        end, size = at + feature.columns, feature.embedding_size
        last = blocks[-1] if blocks else None
        block = Block(at, end, size, is_list)
        if last and _continues(last, block):
            blocks[-1] = Block(last.start, end, size, is_list=False)
        else:
            blocks.append(block)
        at = end
    return blocks


def _runs(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return the code columns of blocks as (start, end), neighbours together."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block.start:
            runs[-1] = (runs[-1][0], block.end)
        else:
            runs.append((block.start, block.end))
    return runs


def _flat(block: Block, codes_BC: Tensor, embedded_BCD: Tensor) -> Tensor:
    """Return a block's share of x: its columns side by side, or the mean over the slots of a list that hold one."""
    if not block.is_list:
        return embedded_BCD.flatten(1)
    given = (codes_BC[:, block.start : block.end] != MISSING_CODE).to(embedded_BCD.dtype).unsqueeze(2)
    return (embedded_BCD * given).sum(1) / given.sum(1).clamp(min=1.0)


def _table_rows(columns: Sequence[tuple[str, int]], sizes: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """Return each code column's first table row, and the rows of the table of each embedding size.

    The slots of a list share the rows of their feature.
    """
    rows: dict[int, int] = {}
    first: dict[str, int] = {}
    for (name, codes), size in zip(columns, sizes, strict=True):
        if name not in first:
            first[name] = rows.get(size, 0)
            rows[size] = first[name] + codes
    return [first[name] for name, _ in columns], rows


def _codes(feature: Feature) -> int:
    encoding = feature.encoding
    if encoding.type == "standardise":
        msg = f"feature {feature.name!r} has no codes"
        raise AssertionError(msg)
    return encoding.codes
