"""Ranking the rows of an int8 bundle's items: `item_int8` says what is in a row, and why a maximum is a first layer.

Legend: N candidates, E networks, H and H2 widths of first and second layers, G logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bundle.manifest import ITEM_ROWS, Tensor
from model_export.int8_graph import WIDE_INPUT, Int8Graph
from model_export.item_halves import Floats, HalfSteps, hidden_widths, linear_widths, networks_on_x
from model_export.quantise import IntegerLayer, Quantised, RequestHalf, integer_layer
from model_export.wiring import array, backbone_reads_items, linears_on_items
from training.models.inputs import PartLayout
from training.models.layers import BatchedMLP

_INT32, _FLOAT = 6, 1


class RankPackedInt8(Int8Graph):
    """Rows that are x in bytes → probabilities."""

    def _item_part(self, item: PartLayout) -> str:
        del item
        return ITEM_ROWS


class RankLayer1Int8(RankPackedInt8):
    """Rows of first layers' item halves → probabilities."""

    def __init__(self, quantised: Quantised, inputs: Sequence[Tensor], steps: HalfSteps) -> None:
        """Take a quantised network, the request's graph inputs, and the steps of the rows."""
        super().__init__(quantised, inputs)
        self.hidden, self.linears = hidden_widths(quantised), linear_widths(quantised)
        ends = np.cumsum([*self.hidden.values(), *self.linears.values()])[:-1]
        names = [*self.hidden, *self.linears]
        self.least = dict(zip(names, np.split(steps.least_K, ends), strict=True))
        self.step = dict(zip(names, np.split(steps.step_K, ends), strict=True))
        self.rows: dict[str, str] = {}  # [1, N, 1, H] each
        self.at_least_of_group: dict[str, tuple[str, str]] = {}  # [1, E·H] each
        self.at_least: dict[str, tuple[str, str]] = {}  # [1, H] each
        self.logits: dict[str, str] = {}
        self.second_layers: dict[BatchedMLP, IntegerLayer] = {}

    def _open_layers_on_x(self, x_request: str | None) -> None:
        """Compute the request's thresholds, the second layers' biases that come of them, and the logits."""
        w = self.writer
        if not backbone_reads_items(self.network):
            self._open_backbone_on_request(x_request)
        logits = sum(self.linears.values())
        thresholds = [self._threshold(name, half) for name, half in self.halves_of_request().items()]
        linear_shares = [self._linear_share(name) for name in self.linears]
        share = self._share_in_bytes(x_request, thresholds + linear_shares)
        hidden = sum(self.hidden.values())
        threshold, *share_of_logits = w.split(share, [hidden, *([logits] if logits else [])])
        above = w.op("QuantizeLinear", threshold, self.one, self.zero)
        below = w.op("QuantizeLinear", w.op("Neg", threshold), self.one, self.zero)
        groups = networks_on_x(self.quantised)
        widths = [sum(width for name, width in self.hidden.items() if name.startswith(f"{group} ")) for group in groups]
        of_groups = [w.split(edge, widths) for edge in (above, below)]
        self.at_least_of_group = dict(zip(groups, zip(*of_groups, strict=True), strict=True))
        rows_of_logits = self._open_rows()
        self._open_later_biases()
        if logits:
            self._open_linears(rows_of_logits, share_of_logits[0])

    def _open_rows(self) -> str:
        """Cut rows and thresholds network by network; return the logits' part [N, 2·G]."""
        w, logits = self.writer, sum(self.linears.values())
        sizes = [*self.hidden.values(), *([2 * logits] if logits else [])]
        pieces = w.split(self._image(ITEM_ROWS, sum(sizes)), sizes, axis=3)
        self.rows = dict(zip(self.hidden, pieces, strict=False))
        for group, edges in self.at_least_of_group.items():
            mine = {name: width for name, width in self.hidden.items() if name.startswith(f"{group} ")}
            each = [w.split(edge, list(mine.values())) for edge in edges]
            self.at_least |= dict(zip(mine, zip(*each, strict=True), strict=True))
        return w.reshape(pieces[-1], [-1, 2 * logits]) if logits else ""

    def _threshold(self, name: str, half: RequestHalf) -> RequestHalf:
        """Return t = (−b − least) / step as a half of its own: b is the share in activation units."""
        return half.in_units(-self._unit(name) / self.step[name]).plus(-self.least[name] / self.step[name])

    def _unit(self, name: str) -> Floats:
        """Return the worth [H] of an accumulated unit of a first layer."""
        group, _, e = name.rpartition(" ")
        scale_EH = self.quantised.layers[networks_on_x(self.quantised)[group]][0].scale_EH
        return np.asarray(scale_EH[int(e)])

    def _linear_share(self, name: str) -> RequestHalf:
        """Return the request's share of a layer's logits, and the least item halves."""
        (half,) = self._request_halves(name, linears_on_items(self.network)[name]).values()
        scale = self.quantised.layers[linears_on_items(self.network)[name]][0].scale_EH[0]
        return half.in_units(scale).plus(self.least[name])

    def _open_linears(self, rows: str, share: str) -> None:
        """Compute all logits: each from two bytes, high and low, and the request's share."""
        w = self.writer
        step = np.concatenate([self.step[name] for name in self.linears])
        weight = np.concatenate([np.diag(256 * step), np.diag(step)])
        logits = w.op("Gemm", w.op("Cast", rows, to=_FLOAT), w.constant(weight.astype(np.float32)), share)
        self.logits = dict(zip(self.linears, w.split(logits, list(self.linears.values())), strict=True))

    def _open_later_biases(self) -> None:
        """Compute the biases that come at run time: of second layers, and of wide layers after them."""
        w = self.writer
        names: list[tuple[int, int]] = []
        edges: list[str] = []
        sizes: list[int] = []
        for group, mlp in networks_on_x(self.quantised).items():
            if len(mlp.weights) > 1:
                layer = self._second_layer(group, mlp)
                edges.append(self._second_bias(group, layer))
                names += [(id(layer), e) for e in range(len(layer.bias_EH))]
                sizes += [layer.bias_EH.shape[1]] * len(layer.bias_EH)
        on_x = networks_on_x(self.quantised).values()
        skipped = {id(layer) for mlp in on_x for layer in self.quantised.layers[mlp][:2]}
        for of_network in self.quantised.layers.values():
            for layer in of_network:
                if layer.request is None and layer.weight_EKH.shape[1] >= WIDE_INPUT and id(layer) not in skipped:
                    edges.append(w.constant(np.rint(layer.bias_EH).astype(np.int32).reshape(-1)))
                    names += [(id(layer), e) for e in range(len(layer.bias_EH))]
                    sizes += [layer.bias_EH.shape[1]] * len(layer.bias_EH)
        if edges:
            self.later_biases = dict(zip(names, w.split(w.concat(edges, axis=0), sizes, axis=0), strict=True))

    def _second_layer(self, group: str, mlp: BatchedMLP) -> IntegerLayer:
        """Return the layer whose inputs are steps above the threshold, quantised anew."""
        step_EK = np.stack([self.step[f"{group} {e}"] for e in range(len(mlp.weights[1]))])
        weight_EKH = array(mlp.weights[1]) * step_EK[:, :, None]
        mean_EK = self.quantised.means[mlp][1] / step_EK
        layer = integer_layer(weight_EKH.astype(np.float32), array(mlp.biases[1])[:, 0], mean_EK.astype(np.float32))
        self.second_layers[mlp] = layer
        return layer

    def _second_bias(self, group: str, layer: IntegerLayer) -> str:
        """Return the bias − t·W of networks' second layers [E·H2], int32, t being within 0…255 or below."""
        w, (networks, width, _) = self.writer, layer.weight_EKH.shape
        both = [w.reshape(edge, [networks, 1, width]) for edge in self.at_least_of_group[group]]
        weight = w.constant(layer.weight_EKH)
        products = w.op("MatMulInteger", w.concat(both), weight)  # [E, 2, H2]
        above, below = w.split(products, [1, 1])
        bias = w.constant(np.rint(layer.bias_EH).astype(np.int32)[:, None])
        return w.reshape(w.op("Add", w.op("Sub", bias, above), below), [-1])

    def _on_x(self, name: str) -> str:
        """Return the logits [N, G] of a layer without ReLU."""
        return self.logits[name] if name in self.logits else super()._on_x(name)

    def _experts_on_x(self, name: str, mlp: BatchedMLP) -> list[str]:
        """Return each network's output: bytes [1, N, 1, H], of one with a single layer float32 [N, H]."""
        if mlp not in self.quantised.layers:
            return super()._experts_on_x(name, mlp)
        networks = range(len(mlp.weights[0]))
        if len(mlp.weights) == 1:
            return [self._only_layer(f"{name} {e}") for e in networks]
        layers = [self.second_layers[mlp], *self.quantised.layers[mlp][2:]]
        return [self._chain(self._maximum(f"{name} {e}"), layers, e) for e in networks]

    def _maximum(self, name: str) -> str:
        """Return max(r, t) [1, N, 1, H] in bytes."""
        return self.writer.op("Max", self.rows[name], self.at_least[name][0])

    def _only_layer(self, name: str) -> str:
        """Return the activations of a network's only layer, (max(r, t) − t)·step, in float32."""
        w = self.writer
        maximum = w.reshape(self._maximum(name), [-1, self.hidden[name]])
        r, above, below = (w.op("Cast", edge, to=_FLOAT) for edge in (maximum, *self.at_least[name]))
        steps = w.op("Sub", r, w.op("Sub", above, below))
        return w.op("Mul", steps, w.constant(self.step[name]))
