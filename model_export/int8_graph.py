"""The serving graph in 8-bit integers.

Item embeddings are u8 rows with zero point 128; each expert is a chain of 1×1 channels-last QLinearConv with
per-channel s8 weights, ReLU being the saturation at an output zero point of 0; the request's half of layer 1
is the first convolution's int32 bias, computed once per request: of weights in bytes too, which are a fourth to read
(for a small request that is most of the time), and of inputs in two bytes each, which cost nothing more and round
next to nothing. One DequantizeLinear per kind of output;
mixtures, towers and heads stay in float32.

U8S8 only: U8U8 is half as fast and S8S8 six times slower (with VNNI); static QDQ of a Gemm whose C is not a constant is
not fused at all. Proven equal to `int8_reference` by `parity`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bundle.manifest import ITEM_CODES, ITEM_VALUES, Tensor
from model_export.graph import ServingGraph
from model_export.item_columns import ITEM_ZERO_POINT, WEIGHT_STEPS, ItemRows, item_rows
from model_export.onnx_writer import GraphWriter
from model_export.quantise import REQUEST_STEPS, IntegerLayer, Quantised, RequestHalf
from model_export.wiring import array, backbone_reads_items, first_experts, latent_network, linears_on_items
from training.models.inputs import Block, PartLayout
from training.models.layers import BatchedMLP

WIDE_INPUT = 256
_INT32 = 6


class Int8Graph(ServingGraph):
    """One quantised network being written as a graph."""

    def __init__(self, quantised: Quantised, inputs: Sequence[Tensor]) -> None:
        """Take a quantised network and the graph inputs of its schema."""
        super().__init__(quantised.network, inputs)
        self.quantised = quantised
        w = self.writer
        self.one = w.constant(np.array(1, dtype=np.float32), "one")
        self.zero = w.constant(np.array(0, dtype=np.uint8), "zero")
        self.middle = w.constant(np.array(ITEM_ZERO_POINT, dtype=np.uint8), "middle")
        self.item_tables: dict[str, str] = {}
        self.item_offsets: dict[tuple[int, int], int] = {}
        self.list_tables: dict[tuple[int, int], str] = {}
        self.linear_layers: dict[str, IntegerLayer] = {}
        self.in_bytes: set[str] = set()
        self.later_biases: dict[tuple[int, int], str] = {}

    # ---- inputs

    def _open_tables(self) -> None:
        """Keep the request features' rows in float32 and the item features' as bytes, lists' in float32 steps."""
        inputs = self.network.inputs
        items = item_rows(inputs)
        for size, table in inputs.tables.items():
            mine = [rows for rows in items if rows.size == int(size)]
            first = min((rows.first_row for rows in mine), default=len(table))
            if first:
                self.tables[size] = self.writer.constant(array(table[:first]), f"table_{size}")
            at, pieces = 0, []
            for rows in mine:
                steps = array(table[rows.first_row : rows.end_row]) / self._scale(rows)
                if rows.is_list:
                    self.list_tables[rows.first_row, rows.size] = self.writer.constant(steps, "list_table")
                    continue
                pieces.append((np.rint(steps) + ITEM_ZERO_POINT).astype(np.uint8))
                self.item_offsets[rows.first_row, rows.size], at = at, at + len(steps)
            if pieces:
                self.item_tables[size] = self.writer.constant(np.concatenate(pieces), f"item_table_{size}")

    def _scale(self, rows: ItemRows) -> NDArray[np.float32]:
        return self.quantised.items.divisor_K[rows.at : rows.at + rows.size]

    def _item_part(self, item: PartLayout) -> str:
        """Return the item part of x as bytes [N, Ki]."""
        w = self.writer
        sizes = [block.end - block.start for block in item.blocks]
        columns = w.split(ITEM_CODES, sizes) if item.blocks else []
        pieces = [self._embed_bytes(block, edge) for block, edge in zip(item.blocks, columns, strict=True)]
        if ITEM_VALUES in self.given:
            pieces.append(self._values(item.values_end - item.values_start))
        return w.concat(pieces)

    def _values(self, values: int) -> str:
        """Return standardised values as bytes, each spread over its columns, in one product."""
        w, items = self.writer, self.quantised.items
        first = self.item_width - values
        mine = items.source_K >= first
        spread = np.zeros((values, int(mine.sum())), dtype=np.float32)
        spread[items.source_K[mine] - first, np.arange(spread.shape[1])] = 1 / items.divisor_K[mine]
        return self._bytes(w.op("Gemm", ITEM_VALUES, w.constant(spread), w.constant(items.shift_K[mine])))

    def _embed_bytes(self, block: Block, codes: str) -> str:
        first_rows = self.network.inputs.offsets[block.start : block.end].tolist()
        if block.is_list:
            steps = self._gather(self.list_tables[first_rows[0], block.size], codes, np.zeros(1, dtype=np.int32))
            return self._bytes(self._mean_of_given(block, codes, steps, rows=-1))
        offsets = np.array([self.item_offsets[row, block.size] for row in first_rows])
        return self._gather_bytes(self.item_tables[str(block.size)], codes, offsets, block)

    def _gather_bytes(self, table: str, codes: str, offsets: NDArray[np.integer], block: Block) -> str:
        """Return the rows of a table of bytes side by side [N, columns·D]."""
        return self.writer.reshape(self._gather(table, codes, offsets), [-1, block.width])

    def _bytes(self, steps: str) -> str:
        """Return numbers −127…127 as bytes around the zero point; larger ones are clipped."""
        limits = [self.writer.constant(np.array(x, dtype=np.float32)) for x in (-WEIGHT_STEPS, WEIGHT_STEPS)]
        return self.writer.op("QuantizeLinear", self.writer.op("Clip", steps, *limits), self.one, self.middle)

    # ---- layers that read x

    def halves_of_request(self) -> dict[str, RequestHalf]:
        """Return the request's half of the integer layers that read x, in accumulated units, by name."""
        experts = first_experts(self.network) if backbone_reads_items(self.network) else None
        named = {"expert": experts, "latent": latent_network(self.network)}
        halves: dict[str, RequestHalf] = {}
        for name, mlp in named.items():
            halves |= {} if mlp is None else self._request_halves(name, mlp)
        return halves

    def _request_halves(self, name: str, network: nn.Module) -> dict[str, RequestHalf]:
        halves = self.quantised.layers[network][0].request
        assert halves is not None
        return {f"{name} {e}": half for e, half in enumerate(halves)}

    def _open_layers_on_x(self, x_request: str | None) -> None:
        """Compute the request's share once: of the chains as int32 bias, of gates and the wide layer as float32."""
        if not backbone_reads_items(self.network):
            self._open_backbone_on_request(x_request)
        linears = linears_on_items(self.network)
        self.linear_layers = {name: self.quantised.layers[linear][0] for name, linear in linears.items()}
        halves = self.halves_of_request()
        for name, linear in linears.items():
            (half,) = self._request_halves(name, linear).values()
            halves[name] = half.in_units(self.linear_layers[name].scale_EH[0])
        share = self._share_in_bytes(x_request, list(halves.values()))
        self._use_share(share, {name: len(half.bias_H) for name, half in halves.items()})

    def _use_share(self, share: str, widths: dict[str, int]) -> None:
        """Cut the request's share [1, all] into that of each layer that reads x: chains first, then linear layers."""
        w, linears = self.writer, list(self.linear_layers)
        chained = sum(width for name, width in widths.items() if name not in linears)
        sizes = [chained, *(widths[name] for name in linears)]
        of_chains, *of_linears = w.split(w.reshape(share, [-1]), sizes, axis=0)
        self.shares_of_request |= dict(zip(linears, of_linears, strict=True))
        self._open_chains(of_chains)

    def _open_chains(self, share: str) -> None:
        """Take the request's share of first layers [ΣH] for their biases.

        Biases of wide later layers, constants though they are, come out of the same node: for a constant bias ONNX
        Runtime takes a convolution kernel of its own, without AMX; from 256 inputs on its product is faster.
        """
        w = self.writer
        halves = self.halves_of_request()
        whole = w.op("Cast", w.op("Round", share), to=_INT32)
        later = {
            (id(layer), e): np.rint(layer.bias_EH[e]).astype(np.int32)
            for of_network in self.quantised.layers.values()
            for layer in of_network
            if layer.request is None and layer.weight_EKH.shape[1] >= WIDE_INPUT
            for e in range(len(layer.bias_EH))
        }
        if later:
            whole = w.concat([whole, w.constant(np.concatenate(list(later.values())))], axis=0)
        sizes = [len(half.bias_H) for half in halves.values()] + [len(bias) for bias in later.values()]
        pieces = w.split(whole, sizes, axis=0)
        self.shares_of_request |= dict(zip(halves, pieces, strict=False))
        self.later_biases = dict(zip(later, pieces[len(halves) :], strict=True))

    def _share_in_bytes(self, x_request: str | None, halves: Sequence[RequestHalf]) -> str:
        """Return x_request · W + b [1, ΣH] of layers side by side.

        x is 256·high + low steps, each a byte around the zero point: two rows of one product.
        """
        w = self.writer
        bias = np.concatenate([half.bias_H for half in halves])
        if x_request is None:
            return w.constant(bias[None, :])
        whole = w.constant(np.concatenate([half.weight_KH for half in halves], axis=1))
        scale = np.concatenate([half.step_H for half in halves])
        step = np.float32(self.quantised.request_reach / REQUEST_STEPS)
        coarse, fine = (w.constant(np.array(size, dtype=np.float32)) for size in (256 * step, step))
        high = w.op("QuantizeLinear", x_request, coarse, self.middle)
        rest = w.op("Sub", x_request, w.op("DequantizeLinear", high, coarse, self.middle))
        low = w.op("QuantizeLinear", rest, fine, self.middle)
        none = w.constant(np.zeros(len(scale), dtype=np.int8))
        both = w.microsoft(
            "MatMulIntegerToFloat", w.concat([high, low], axis=0), whole, self.one, w.constant(scale), self.middle, none
        )
        sizes = w.constant(np.array([[256 * step, step]], dtype=np.float32))
        return w.op("Gemm", sizes, both, w.constant(bias))

    def _open_backbone_on_request(self, x_request: str | None) -> None:
        """Compute the first layers of a backbone that reads the request only, in float32: it has one row."""
        layers = self._layers_of_backbone()
        pieces = self.writer.split(
            self._share_of_request(x_request, list(layers.values())), [len(bias) for _, bias in layers.values()]
        )
        self.item_weights = {name: weight[self.request_width :] for name, (weight, _) in layers.items()}
        self.shares_of_request = dict(zip(layers, pieces, strict=True))

    def _on_x(self, name: str) -> str:
        """Return logits x·W + b [N, M·E] of a layer without ReLU in float32 from bytes."""
        if name not in self.linear_layers:
            return super()._on_x(name)
        w, layer = self.writer, self.linear_layers[name]
        weight, scale = w.constant(layer.weight_EKH[0]), w.constant(layer.scale_EH[0])
        none = w.constant(np.zeros(layer.scale_EH.shape[1], dtype=np.int8))
        share = self.shares_of_request[name]
        return w.microsoft("MatMulIntegerToFloat", self.x_item, weight, self.one, scale, self.middle, none, share)

    def _experts_on_x(self, name: str, mlp: BatchedMLP) -> list[str]:
        """Return each network's output as bytes [1, N, 1, H] where all read x."""
        if mlp not in self.quantised.layers:
            return super()._experts_on_x(name, mlp)
        first, *later = self.quantised.layers[mlp]
        image = self._image(self.x_item, len(self.quantised.items.source_K))
        return [
            self._chain(self._convolve(image, self.middle, first, e, self.shares_of_request[f"{name} {e}"]), later, e)
            for e in range(len(first.scale_EH))
        ]

    # ---- other layers

    def _experts(self, mlp: BatchedMLP, xs: Sequence[str]) -> list[str]:
        """Return the outputs [1, N, 1, H] of experts that read representations, mixtures of 0…255."""
        if mlp not in self.quantised.layers:
            return super()._experts(mlp, xs)
        width = self.quantised.layers[mlp][0].weight_EKH.shape[1]
        images = {
            x: self._image(self.writer.op("QuantizeLinear", x, self.one, self.zero), width) for x in dict.fromkeys(xs)
        }
        return [self._chain(images[x], self.quantised.layers[mlp], e) for e, x in enumerate(xs)]

    def _chain(self, image: str, layers: Sequence[IntegerLayer], e: int) -> str:
        for layer in layers:
            bias = self.later_biases.get((id(layer), e))
            if bias is None:
                bias = self.writer.constant(np.rint(layer.bias_EH[e]).astype(np.int32))
            image = self._convolve(image, self.zero, layer, e, bias)
        return image

    def _convolve(self, image: str, zero_point: str, layer: IntegerLayer, e: int, bias: str) -> str:
        """Return one layer of network `e`: multiply, add the int32 bias, rescale, round, clip to 0…255."""
        image = convolve(self.writer, image, zero_point, layer.weight_EKH[e], layer.scale_EH[e], bias)
        self.in_bytes.add(image)
        return image

    def _image(self, x: str, width: int) -> str:
        """Return [N, K] as a channels-last image [1, N, 1, K]."""
        return self.writer.reshape(x, [1, -1, 1, width])

    def _stacked(self, experts: Sequence[str]) -> str:
        """Return [N, E, H] as float32."""
        if experts[0] not in self.in_bytes:
            return super()._stacked(experts)
        w = self.writer
        side_by_side = w.reshape(w.concat(experts, axis=3), [-1, len(experts), self.network.backbone.outputs])
        return w.op("DequantizeLinear", side_by_side, self.one, self.zero)

    def _as_float(self, expert: str) -> str:
        if expert not in self.in_bytes:
            return super()._as_float(expert)
        w = self.writer
        flat = w.op("Squeeze", expert, w.constant(np.array([0, 2], dtype=np.int64)))
        return w.op("DequantizeLinear", flat, self.one, self.zero)


def convolve(
    w: GraphWriter, image: str, zero_point: str, weight_KH: NDArray[np.int8], scale_H: NDArray[np.float32], bias: str
) -> str:
    """Return bytes [1, N, 1, H] from bytes [1, N, 1, K]: a product with s8 weights, rescaled and clipped."""
    one, zero = w.constant(np.array(1, dtype=np.float32)), w.constant(np.array(0, dtype=np.uint8))
    weight, scale = w.constant(weight_KH.T[:, :, None, None]), w.constant(scale_H)
    none = w.constant(np.zeros(len(scale_H), dtype=np.int8))
    return w.microsoft(
        "QLinearConv", image, one, zero_point, weight, scale, none, one, zero, bias,
        channels_last=1, group=1, kernel_shape=[1, 1],
    )  # fmt: skip
