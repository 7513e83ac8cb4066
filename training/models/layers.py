"""Building blocks: embeddings of encoded features, and several MLPs of one shape run as batched products.

Legend: B batch, C code columns, V value columns, D embedding, K input width, E networks side by side,
H hidden width, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.encode import code_features, value_features
from bundle.features import MISSING_CODE, CategoricalListFeature, Feature, FeatureSchema
from training import loops

_COLUMNS = 16
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


class Layer(NamedTuple):
    """E linear layers of one shape.

    Attributes:
        weight: [E, K, H].
        bias: [E, 1, H].
        is_relu: whether max(0, ·) follows.
    """

    weight: Tensor
    bias: Tensor
    is_relu: bool


class BatchedMLP(nn.Module):
    """E MLPs of one shape, each layer one batched product; ReLU after every layer."""

    def __init__(self, networks: int, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for outputs in hidden:
            self.weights.append(nn.Parameter(linear_weight(networks, inputs, outputs)))
            self.biases.append(nn.Parameter(torch.zeros(networks, 1, outputs)))
            inputs = outputs
        self.outputs = inputs

    @property
    def first(self) -> Layer:
        """The first layer."""
        return Layer(self.weights[0], self.biases[0], is_relu=True)

    def after_first(self, x_EBH: Tensor) -> Tensor:
        """Return [E, B, H] from what the first layer gives."""
        x = x_EBH
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            x = side_by_side(x, weight, bias).relu_()
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return [E, B, H] from x [B, K] (shared by all) or [E, B, K] (one each)."""
        return self.after_first(torch.relu(side_by_side(x, self.weights[0], self.biases[0])))


def side_by_side(x: Tensor, weight_EKH: Tensor, bias_E1H: Tensor) -> Tensor:
    """Return E linear layers [E, B, H] of x [B, K] (shared by all) or [E, B, K] (one each).

    Layers that share x are one product of width E·H: as E products, their gradient of x would be E times as large.
    """
    if x.dim() == 3:
        return torch.baddbmm(bias_E1H, x, weight_EKH)
    networks, inputs, outputs = weight_EKH.shape
    flat = torch.addmm(bias_E1H.flatten(), x, weight_EKH.transpose(0, 1).reshape(inputs, networks * outputs))
    return flat.view(-1, networks, outputs).transpose(0, 1)


def joint_layers(x_BK: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Return what several groups of layers give of one x, [E, B, H] each, all of them by one product.

    A product of few columns takes nearly as long as one of many: beside 192 columns of experts the 15 of gates took
    4 of 29 ms of a training step, and as columns of the same product half a millisecond. Under autocast x and its
    gradient are also converted once, not for each layer.
    """
    device = x_BK.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BK.dtype
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    parts: tuple[Tensor, ...] = _JointLayers.apply(x_BK, dtype, [layer.is_relu for layer in layers], *tensors)  # type: ignore[no-untyped-call]
    return list(parts)


class _JointLayers(torch.autograd.Function):
    """Layers of one x, given as weight [E, K, H], bias [E, 1, H] and so on, as one product of W columns.

    Columns of nothing fill it up to a multiple of `_COLUMNS`, for which kernels are made. By hand, because autograd
    would copy what comes back twice more: behind each ReLU, and to put it together.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BK: Tensor, dtype: torch.dtype, is_relu: Sequence[bool], *layers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return each group's outputs, [E, B, H], of products in a dtype."""
        shapes = [weight.shape for weight in layers[::2]]
        width = -(-sum(shape[0] * shape[2] for shape in shapes) // _COLUMNS) * _COLUMNS
        ctx.x_dtype, x_BK = x_BK.dtype, x_BK.to(dtype)
        weight_KW, bias_W = x_BK.new_zeros(x_BK.shape[1], width), x_BK.new_zeros(width)
        for into, weight in zip(_columns_of(weight_KW, shapes), layers[::2], strict=True):
            into.copy_(weight)
        for into, bias in zip(_columns_of(bias_W[None], shapes), layers[1::2], strict=True):
            into.copy_(bias)
        ctx.shapes, ctx.is_relu = shapes, is_relu
        output_BW = torch.addmm(bias_W, x_BK, weight_KW)
        outputs = _columns_of(output_BW, shapes)
        for output, relu in zip(outputs, is_relu, strict=True):
            if relu:
                output.clamp_(min=0)
        ctx.save_for_backward(x_BK, weight_KW, output_BW)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of each weight and bias."""
        x_BK, weight_KW, output_BW = ctx.saved_tensors
        gradient_BW = x_BK.new_empty(len(x_BK), weight_KW.shape[1])
        gradient_BW[:, -_COLUMNS:] = 0
        into, outputs = _columns_of(gradient_BW, ctx.shapes), _columns_of(output_BW, ctx.shapes)
        for of_group, gradient, output, relu in zip(into, gradients, outputs, ctx.is_relu, strict=True):
            if relu:
                torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=of_group)
            else:
                of_group.copy_(gradient)
        x_gradient = (gradient_BW @ weight_KW.t()).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        weights = _columns_of((x_BK.t() @ gradient_BW).to(ctx.x_dtype), ctx.shapes)
        biases = _columns_of(gradient_BW.sum(0, dtype=ctx.x_dtype)[None], ctx.shapes)
        return x_gradient, None, None, *(tensor for layer in zip(weights, biases, strict=True) for tensor in layer)


def _columns_of(wide_RW: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return each group's columns of a matrix, [E, R, H], as views."""
    views, start = [], 0
    for networks, _, outputs in shapes:
        end = start + networks * outputs
        views.append(wide_RW[:, start:end].view(-1, networks, outputs).transpose(0, 1))
        start = end
    return views


def last_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight at the precision of the weight, also under autocast.

    For the products that give logits: rounded to bfloat16 they would have three digits.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return x @ weight
    with torch.autocast(x.device.type, enabled=False):
        return x.to(weight.dtype) @ weight


def column_products(x_TBH: Tensor, weight_TH: Tensor) -> Tensor:
    """Return x [T, B, H] times w [T, H], [T, B], at full precision also under autocast.

    As batched products of one column they take up to three times as long to train, as sums twice.
    """
    products_TB: Tensor = _ColumnProducts.apply(x_TBH, weight_TH)  # type: ignore[no-untyped-call]
    return products_TB


class _ColumnProducts(torch.autograd.Function):
    """A product of a matrix and a vector for each task, and two more for their gradients."""

    @staticmethod
    def forward(ctx: Any, x_TBH: Tensor, weight_TH: Tensor) -> Tensor:
        """Return [T, B]."""
        ctx.save_for_backward(x_TBH, weight_TH)
        with torch.autocast(x_TBH.device.type, enabled=False):
            return torch.stack([torch.mv(x_BH, weight_H) for x_BH, weight_H in zip(x_TBH, weight_TH, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and w."""
        (gradient_TB,), (x_TBH, weight_TH) = gradients, ctx.saved_tensors
        of_weight = [torch.mv(x_BH.t(), of_B) for x_BH, of_B in zip(x_TBH, gradient_TB, strict=True)]
        return gradient_TB[:, :, None] * weight_TH[:, None], torch.stack(of_weight)


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


def linear_weight(networks: int, inputs: int, outputs: int) -> Tensor:
    """Return initial weights [E, K, H], uniform within ±sqrt(3 / K) (variance 1 / K)."""
    bound = math.sqrt(3.0 / max(inputs, 1))
    return torch.empty(networks, inputs, outputs).uniform_(-bound, bound)


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
