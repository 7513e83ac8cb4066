"""The int8 serving graph cut at the item half (see `item_graphs`), rows being bytes.

Packed rows are the item part of x in bytes, as the int8 graph makes them. A layer-1 row holds each hidden channel's
item half a in steps of its own, from the least that any item has: a = least + r·step, r in 0…255. A hidden activation
is relu(a + b), b being the request's share; and relu(a + b) = max(a, −b) + b. So with t = (−b − least) / step the
first layer of a ranked request is one maximum of bytes, max(r, t), and −t goes into the next layer's bias, computed
once per request. A share beyond every item (t < 0: always active) needs no maximum, only the bias; t > 255 is never
active. Halves of logits (gates, the wide layer) are kept in 16 bits, as two bytes.

Legend: N candidates, M items, E networks, H hidden width, G logits, K all halves side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from bundle.golden import Arrays
from bundle.manifest import FUSED_ROWS_MODEL_FILE, ITEM_ENCODER_FILE, ITEM_ROWS, Tensor
from model_export.fused_graph import FusedRankLayer1, FusedRankPacked
from model_export.int8_graph import Int8Graph
from model_export.item_graphs import OF_ITEMS, Rows, write_ranking
from model_export.item_halves import HalfSteps, first_layer, hidden_widths, linear_widths, networks_on_x
from model_export.item_int8_rank import RankLayer1Int8, RankPackedInt8
from model_export.onnx_writer import WeightsFile
from model_export.parity import open_session
from model_export.quantise import ACTIVATION_STEPS, Quantised
from model_export.wiring import linears_on_items

LOGIT_STEPS = 65_535


class IntegerCut:
    """The int8 graph, cut."""

    def __init__(self, quantised: Quantised, inputs: Sequence[Tensor], steps: HalfSteps | None) -> None:
        """Take a quantised network, the inputs of its whole graph, and the steps of layer-1 rows, else packed ones."""
        self._quantised, self._inputs, self._steps = quantised, inputs, steps

    @property
    def row(self) -> Tensor:
        """The rows, as one graph gives and the other takes them."""
        width = len(self._quantised.items.source_K)
        if self._steps is not None:
            width = sum(hidden_widths(self._quantised).values()) + 2 * sum(linear_widths(self._quantised).values())
        return Tensor(name=ITEM_ROWS, dtype="uint8", shape=("N", width))

    def write(self, folder: Path, weights: WeightsFile) -> None:
        """Write both graphs into `folder`."""
        row = self.row
        of_items = [tensor for tensor in self._inputs if tensor.name in OF_ITEMS]
        encoder = _Encoder(self._quantised, of_items)
        rows = encoder.x_in_bytes() if self._steps is None else encoder.rows(self._steps)
        encoder.writer.write(folder, ITEM_ENCODER_FILE, of_items, [(row, rows)], weights)
        write_ranking(self._ranks(RankPackedInt8, RankLayer1Int8), folder, row, weights)

    def write_fused(self, folder: Path, weights: WeightsFile) -> None:
        """Write the graph that ranks rows in operators of our own into `folder`."""
        write_ranking(self._ranks(FusedRankPacked, FusedRankLayer1), folder, self.row, weights, FUSED_ROWS_MODEL_FILE)

    def _ranks(self, packed: type[RankPackedInt8], layer1: type[RankLayer1Int8]) -> RankPackedInt8:
        """Return the graph that ranks rows of the wanted kind."""
        of_request = [tensor for tensor in self._inputs if tensor.name not in OF_ITEMS]
        if self._steps is None:
            return packed(self._quantised, of_request)
        return layer1(self._quantised, of_request, self._steps)


def integer_cut(quantised: Quantised, inputs: Sequence[Tensor], rows: Rows, items: Iterable[Arrays]) -> IntegerCut:
    """Return the cut of a quantised network; the steps of layer-1 rows span the halves of `items`, encoded pieces."""
    return IntegerCut(quantised, inputs, _half_steps(quantised, inputs, items) if rows == "layer1" else None)


def _half_steps(quantised: Quantised, inputs: Sequence[Tensor], items: Iterable[Arrays]) -> HalfSteps:
    """Return the steps that span the halves of all items.

    An activation unit is the least step of a hidden channel: what is finer is lost in its rounding anyway, and a
    share may then reach as far as activations do.
    """
    of_items = [tensor for tensor in inputs if tensor.name in OF_ITEMS]
    hidden, logits = sum(hidden_widths(quantised).values()), sum(linear_widths(quantised).values())
    least = np.full(hidden + logits, np.inf, dtype=np.float32)
    most = -least
    with TemporaryDirectory() as name:
        encoder, file = _Encoder(quantised, of_items), "halves.onnx"
        halves = Tensor(name="halves", dtype="float32", shape=("N", hidden + logits))
        encoder.writer.write(Path(name), file, of_items, [(halves, encoder.halves())])
        session = open_session(Path(name) / file)
        wanted = {tensor.name for tensor in of_items}
        for piece in items:
            found = session.run(None, {name: piece[name] for name in wanted})[0]
            least, most = np.minimum(least, found.min(axis=0)), np.maximum(most, found.max(axis=0))
    step = (most - least) / np.r_[np.full(hidden, ACTIVATION_STEPS), np.full(logits, LOGIT_STEPS)].astype(np.float32)
    step[:hidden] = np.maximum(step[:hidden], 1)
    step[hidden:] = np.maximum(step[hidden:], np.finfo(np.float32).tiny)
    return HalfSteps(least, np.asarray(step, dtype=np.float32))


class _Encoder(Int8Graph):
    """Items' features → halves → rows."""

    def x_in_bytes(self) -> str:
        """Return the edge of the item part of x."""
        self._open_tables()
        return self._item_part(self.network.inputs.parts[1])

    def halves(self) -> str:
        """Return the edge of the item halves [N, K]: of hidden channels in activation units, then logits."""
        w, x_item = self.writer, self.x_in_bytes()
        modules: list[nn.Module] = list(networks_on_x(self.quantised).values())
        layers = [first_layer(self.quantised, module) for module in modules]
        layers += [first_layer(self.quantised, linear) for linear in linears_on_items(self.network).values()]
        weight = np.concatenate([weight_KH for layer in layers for weight_KH in layer.weight_EKH], axis=1)
        scale = np.concatenate([layer.scale_EH.reshape(-1) for layer in layers])
        none = w.constant(np.zeros(len(scale), dtype=np.int8))
        inputs = (x_item, w.constant(weight), self.one, w.constant(scale), self.middle, none)
        return w.microsoft("MatMulIntegerToFloat", *inputs)

    def rows(self, steps: HalfSteps) -> str:
        """Return the edge of the rows."""
        w, width = self.writer, sum(linear_widths(self.quantised).values())
        above = w.op("Sub", self.halves(), w.constant(steps.least_K))
        whole = w.op("Div", above, w.constant(steps.step_K))
        hidden, *logits = w.split(whole, [sum(hidden_widths(self.quantised).values()), *([width] if width else [])])
        pieces = [hidden]
        if logits:
            limits = [w.constant(np.array(x, dtype=np.float32)) for x in (0, LOGIT_STEPS)]
            steps_of_logits = w.op("Clip", w.op("Round", logits[0]), *limits)
            size = w.constant(np.array(256, dtype=np.float32))
            high = w.op("Floor", w.op("Div", steps_of_logits, size))
            pieces += [high, w.op("Sub", steps_of_logits, w.op("Mul", high, size))]
        return w.op("QuantizeLinear", w.concat(pieces), self.one, self.zero)
