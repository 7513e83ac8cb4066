"""The serving graph cut at the item half: one graph makes an item's row of its features, the other ranks rows.

A row is *packed*: the item part of x, every embedding looked up and side by side; or *layer1*: that part's product
with the weights of every layer that reads x, to which ranking adds the request's share. Nothing of the request is in
a row, so that rows may be kept. Here in float32; `item_int8` has both cuts of the int8 graph.

Legend: N candidates, Ki width of the item part of x, H width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import ITEM_CODES, ITEM_ENCODER_FILE, ITEM_ROWS, ITEM_VALUES, ROWS_MODEL_FILE, Tensor
from bundle.read import output_tensors
from model_export.graph import ServingGraph
from model_export.onnx_writer import WeightsFile
from training.models.inputs import PartLayout
from training.models.network import Network

Rows = Literal["packed", "layer1"]
OF_ITEMS = (ITEM_CODES, ITEM_VALUES)


class Cut(Protocol):
    """One way to cut a network's graph at the item half."""

    @property
    def row(self) -> Tensor:
        """The rows, as one graph gives and the other takes them."""

    def write(self, folder: Path, weights: WeightsFile) -> None:
        """Write both graphs into `folder`."""


class FloatCut:
    """The float32 graph, cut."""

    def __init__(self, network: Network, inputs: Sequence[Tensor], rows: Rows) -> None:
        """Take a network and the inputs of its whole graph."""
        self._network, self._inputs, self._rows = network, inputs, rows

    @property
    def row(self) -> Tensor:
        """The rows, as one graph gives and the other takes them."""
        graph = ServingGraph(self._network, self._inputs)
        halves = item_halves(graph)
        width = graph.item_width if self._rows == "packed" else sum(weight.shape[1] for weight in halves.values())
        return Tensor(name=ITEM_ROWS, dtype="float32", shape=("N", width))

    def write(self, folder: Path, weights: WeightsFile) -> None:
        """Write both graphs into `folder`."""
        row, layer1 = self.row, self._rows == "layer1"
        of_items = [tensor for tensor in self._inputs if tensor.name in OF_ITEMS]
        of_request = [tensor for tensor in self._inputs if tensor.name not in OF_ITEMS]
        encoder = _Encoder(self._network, of_items)
        encoder.writer.write(folder, ITEM_ENCODER_FILE, of_items, [(row, encoder.rows(layer1=layer1))], weights)
        ranks = (_RankLayer1 if layer1 else _RankPacked)(self._network, of_request)
        write_ranking(ranks, folder, row, weights)


def write_ranking(
    graph: ServingGraph, folder: Path, row: Tensor, weights: WeightsFile, file: str = ROWS_MODEL_FILE
) -> None:
    """Write the graph that ranks rows."""
    edges = graph.build()
    outputs = output_tensors(graph.tasks, has_latent=graph.network.config.has_latent)
    named = [(tensor, edges[tensor.name]) for tensor in outputs]
    graph.writer.write(folder, file, [*graph.inputs, row], named, weights)


def item_halves(graph: ServingGraph) -> dict[str, NDArray[np.float32]]:
    """Return the item half [Ki, H] of every layer that reads items, by name."""
    halves = {name: weight[graph.request_width :] for name, (weight, _) in graph.layers_on_x().items()}
    return {name: half for name, half in halves.items() if len(half)}


class _Encoder(ServingGraph):
    """Items' features → rows."""

    def rows(self, *, layer1: bool) -> str:
        """Return the rows' edge."""
        self._open_tables()
        x_item = self._item_part(self.network.inputs.parts[1])
        if not layer1:
            return x_item
        w = self.writer
        return w.concat([w.op("MatMul", x_item, w.constant(half)) for half in item_halves(self).values()])


class _RankPacked(ServingGraph):
    """Rows of embeddings → probabilities."""

    def _item_part(self, item: PartLayout) -> str:
        del item
        return ITEM_ROWS


class _RankLayer1(_RankPacked):
    """Rows of first layers' item halves → probabilities."""

    def _open_layers_on_x(self, x_request: str | None) -> None:
        super()._open_layers_on_x(x_request)
        halves = item_halves(self)
        pieces = self.writer.split(ITEM_ROWS, [half.shape[1] for half in halves.values()])
        self.pieces = dict(zip(halves, pieces, strict=True))

    def _on_x(self, name: str) -> str:
        """Return x·W + b [N, H]."""
        share = self.shares_of_request[name]
        return self.writer.op("Add", self.pieces[name], share) if name in self.pieces else share
