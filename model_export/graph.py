"""The serving graph of a network: one request, N candidates, the request's half of layer 1 computed once.

The network's input is x = [request part | item part]. Every layer that reads x is written as
Gemm(x_item [N, Ki], W_item, C = its piece of x_request [1, Kr] · W_request + b): the request's share is one
row, added to all candidates; the shares of all layers are one product. Each expert is a chain of its own, so
that its [N, H] activations stay in cache. Where the backbone reads the request only (habit towers), the share is
the whole layer, and experts, gates and towers have one row. Proven equal to the training network by `parity`.

Legend: N candidates, Kr and Ki widths of the two parts of x, E experts, M mixtures, T tasks, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.features import MISSING_CODE, FeatureSchema
from bundle.manifest import ITEM_CODES, ITEM_VALUES, MODEL_FILE, REQUEST_CODES, REQUEST_VALUES, Tensor
from bundle.read import input_tensors, output_tensors
from model_export.head_graph import write_independent_head, write_latent_head, write_task_logits
from model_export.onnx_writer import GraphWriter, WeightsFile
from model_export.wiring import WIDE, Weights, array, as_one_layer, first_experts, first_linears, latent_network
from training.models.backbones import MMOE, PLE, Gates, PLELevel, SeparateBottoms, SharedBottom
from training.models.heads import IndependentHead, LatentHead
from training.models.inputs import Block, PartLayout
from training.models.layers import BatchedMLP
from training.models.network import Network

Layer = tuple[Weights, Weights]
"""Weight [K, H] and bias [H]."""


def write_serving_graph(network: Network, schema: FeatureSchema, folder: Path) -> None:
    """Write model.onnx and its weights into `folder`."""
    ServingGraph(network, input_tensors(schema)).write(folder)


class ServingGraph:
    """One network being written as a graph in float32."""

    def __init__(self, network: Network, inputs: Sequence[Tensor]) -> None:
        """Take a network and the graph inputs of its schema."""
        self.network, self.inputs, self.writer = network, tuple(inputs), GraphWriter()
        self.given = {tensor.name for tensor in inputs}
        self.request_width, self.item_width = (part.width for part in network.inputs.parts)
        self.tasks = len(network.head.weight)
        self.tables: dict[str, str] = {}
        self.x_item = ""
        self.shares_of_request: dict[str, str] = {}

    def write(self, folder: Path, weights: WeightsFile | None = None, file: str = MODEL_FILE) -> None:
        """Write the graph into `folder`, and its weights to a file that other graphs there may share."""
        edges = self.build()
        outputs = output_tensors(self.tasks, has_latent=self.network.config.has_latent)
        named = [(tensor, edges[tensor.name]) for tensor in outputs]
        self.writer.write(folder, file, self.inputs, named, weights)

    def build(self) -> dict[str, str]:
        """Return the edge of each output by name."""
        request, item = self.network.inputs.parts
        self._open_tables()
        x_request = self._part(request, REQUEST_CODES, REQUEST_VALUES, rows=1) if self.request_width else None
        self.x_item = self._item_part(item)
        self._open_layers_on_x(x_request)
        return self._head(self._backbone())

    # ---- inputs

    def _open_tables(self) -> None:
        for size, table in self.network.inputs.tables.items():
            self.tables[size] = self.writer.constant(array(table), f"table_{size}")

    def _item_part(self, item: PartLayout) -> str:
        return self._part(item, ITEM_CODES, ITEM_VALUES, rows=-1)

    def _part(self, part: PartLayout, codes: str, values: str, rows: int) -> str:
        """Return x of one part [rows, K]: embeddings block by block, then standardised values."""
        columns = self.writer.split(codes, [block.end - block.start for block in part.blocks]) if part.blocks else []
        pieces = [self._embed(block, edge, rows) for block, edge in zip(part.blocks, columns, strict=True)]
        if values in self.given:
            pieces.append(values)
        return self.writer.concat(pieces)

    def _embed(self, block: Block, codes: str, rows: int) -> str:
        offsets = self.network.inputs.offsets[block.start : block.end].numpy()
        embedded = self._gather(self.tables[str(block.size)], codes, offsets)
        if block.is_list:
            return self._mean_of_given(block, codes, embedded, rows)
        return self.writer.reshape(embedded, [rows, block.width])

    def _gather(self, table: str, codes: str, offsets: NDArray[np.integer]) -> str:
        """Return the rows [rows, columns, D] of a table; `offsets` are its columns' first rows in it."""
        rows = self.writer.op("Add", codes, self.writer.constant(offsets.astype(np.int32), "offsets"))
        return self.writer.op("Gather", table, rows)

    def _mean_of_given(self, block: Block, codes: str, embedded: str, rows: int) -> str:
        """Return the mean [rows, D] over the slots of a list that hold a value."""
        w = self.writer
        missing = w.op("Equal", codes, w.constant(np.array(MISSING_CODE, dtype=np.int32)))
        given = w.reshape(w.op("Cast", w.op("Not", missing), to=1), [rows, 1, block.end - block.start])
        total = w.reshape(w.op("MatMul", given, embedded), [rows, block.size])
        axes = w.constant(np.array([1, 2], dtype=np.int64))
        count = w.reshape(w.op("ReduceSum", given, axes, keepdims=0), [rows, 1])
        return w.op("Div", total, w.op("Max", count, w.constant(np.array(1, dtype=np.float32))))

    # ---- layers that read x

    def layers_on_x(self) -> dict[str, Layer]:
        """Return every layer that reads x by name: weight [K, H] and bias [H]."""
        latent = latent_network(self.network)
        return self._layers_of_backbone() | ({} if latent is None else _first_layers("latent", latent))

    def _layers_of_backbone(self) -> dict[str, Layer]:
        linears = {name: as_one_layer(linear) for name, linear in first_linears(self.network).items()}
        return _first_layers("expert", first_experts(self.network)) | linears

    def _open_layers_on_x(self, x_request: str | None) -> None:
        """Compute the request's share of every layer that reads x, all in one product."""
        layers = self.layers_on_x()
        self.item_weights = {name: weight[self.request_width :] for name, (weight, _) in layers.items()}
        share = self._share_of_request(x_request, list(layers.values()))
        pieces = self.writer.split(share, [len(bias) for _, bias in layers.values()])
        self.shares_of_request = dict(zip(layers, pieces, strict=True))

    def _share_of_request(self, x_request: str | None, layers: Sequence[Layer]) -> str:
        """Return x_request · W + b [1, ΣH] of layers side by side."""
        bias = np.concatenate([bias for _, bias in layers])
        if x_request is None:
            return self.writer.constant(bias[None, :])
        return self._linear(x_request, np.concatenate([w[: self.request_width] for w, _ in layers], axis=1), bias)

    def _on_x(self, name: str) -> str:
        """Return x·W + b [N, H] of a layer that reads x, [1, H] where it reads the request only."""
        weight = self.item_weights[name]
        if not len(weight):
            return self.shares_of_request[name]
        return self.writer.op("Gemm", self.x_item, self.writer.constant(weight), self.shares_of_request[name])

    def _experts_on_x(self, name: str, mlp: BatchedMLP) -> list[str]:
        """Return each network's output [N, H] where all read x."""
        hidden = [self.writer.op("Relu", self._on_x(f"{name} {e}")) for e in range(len(mlp.weights[0]))]
        return self._mlp(mlp, hidden, from_layer=1)

    # ---- other layers

    def _linear(self, x: str, weight_KH: Weights, bias_H: Weights) -> str:
        return self.writer.op("Gemm", x, self.writer.constant(weight_KH), self.writer.constant(bias_H))

    def _mlp(self, mlp: BatchedMLP, xs: Sequence[str], from_layer: int = 0) -> list[str]:
        """Return each network's output [N, H] from inputs of its own, starting at a layer."""
        weights, biases = [array(x) for x in mlp.weights], [array(x) for x in mlp.biases]
        outputs = []
        for e, x in enumerate(xs):
            for weight, bias in zip(weights[from_layer:], biases[from_layer:], strict=True):
                x = self.writer.op("Relu", self._linear(x, weight[e], bias[e, 0]))
            outputs.append(x)
        return outputs

    def _experts(self, mlp: BatchedMLP, xs: Sequence[str]) -> list[str]:
        """Return the outputs [N, H] of experts that read representations."""
        return self._mlp(mlp, xs)

    def _as_float(self, expert: str) -> str:
        """Return an expert's output [N, H] as float32."""
        return expert

    # ---- backbones

    def _backbone(self) -> list[str]:
        """Return the tasks' representations [N, H]."""
        backbone = self.network.backbone
        if isinstance(backbone, PLE):
            return self._ple(backbone)
        experts = self._experts_on_x("expert", first_experts(self.network))
        if isinstance(backbone, MMOE):
            return self._mix(self._softmax(self._on_x("gates"), backbone.gates), experts)
        assert isinstance(backbone, SharedBottom | SeparateBottoms)
        return self._unmixed(experts)

    def _unmixed(self, experts: Sequence[str]) -> list[str]:
        """Return the tasks' representations [N, H] where each is one network's output: a task's own, or all tasks'."""
        floats = [self._as_float(expert) for expert in experts]
        return floats * self.tasks if len(floats) == 1 else floats

    # ---- mixtures

    def _softmax(self, logits: str, gates: Gates) -> str:
        """Return shares [N, M, E] from the logits [N, M·E] of M gates side by side."""
        mixtures, _, experts = gates.weight.shape
        return self.writer.op("Softmax", self.writer.reshape(logits, [-1, mixtures, experts]), axis=2)

    def _mix(self, shares: str, experts: Sequence[str], mixtures: int | None = None) -> list[str]:
        """Return the sums [N, H] of the experts under shares [N, M, E], mixture by mixture."""
        w, width = self.writer, self.network.backbone.outputs
        mixtures = self.tasks if mixtures is None else mixtures
        mixed = w.reshape(w.op("MatMul", shares, self._stacked(experts)), [-1, mixtures * width])
        return w.split(mixed, [width] * mixtures)

    def _stacked(self, experts: Sequence[str]) -> str:
        """Return [N, E, H]."""
        return self.writer.reshape(self.writer.concat(experts), [-1, len(experts), self.network.backbone.outputs])

    def _ple(self, ple: PLE) -> list[str]:
        representations: list[str] | None = None  # None: x itself
        for level in ple.levels:
            assert isinstance(level, PLELevel)
            representations = self._ple_level(level, representations)
        assert representations is not None
        return representations

    def _ple_level(self, level: PLELevel, xs: list[str] | None) -> list[str]:
        """Return the tasks' representations and, but on the last level, the shared one behind them.

        A task's share of another task's experts is zero, so that all mixtures are one batched product.
        """
        if xs is None:
            experts = self._experts_on_x("expert", level.experts)
        else:
            spread = [xs[-1]] * level.shared + [xs[t] for t in range(level.tasks) for _ in range(level.own)]
            experts = self._experts(level.experts, spread)
        w = self.writer
        own = self._softmax(self._gate_logits("gates", level.gates, xs), level.gates)
        own = w.reshape(own, [-1, level.tasks * (level.shared + level.own)])
        shares = w.op("MatMul", own, w.constant(_places_of_experts(level)))
        if level.shared_gate is None:
            return self._mix(w.reshape(shares, [-1, level.tasks, len(experts)]), experts)
        logits = self._gate_logits("shared gate", level.shared_gate, None if xs is None else xs[-1:])
        all_shares = w.concat([shares, w.op("Softmax", logits, axis=1)])
        mixtures = level.tasks + 1
        return self._mix(w.reshape(all_shares, [-1, mixtures, len(experts)]), experts, mixtures)

    def _gate_logits(self, name: str, gates: Gates, xs: Sequence[str] | None) -> str:
        """Return the logits [N, M·E] of gates that read x, or each a representation."""
        if xs is None:
            return self._on_x(name)
        weight, bias = array(gates.weight), array(gates.bias)
        return self.writer.concat([self._linear(xs[m], weight[m], bias[m, 0]) for m in range(len(weight))])

    # ---- heads

    def _head(self, representations: Sequence[str]) -> dict[str, str]:
        head = self.network.head
        logits = self._task_logits(head, representations)
        if self.network.wide is not None:
            logits = self.writer.op("Add", logits, self._on_x(WIDE))
        if isinstance(head, IndependentHead):
            return write_independent_head(self.writer, head, logits)
        (latent,) = self._experts_on_x("latent", head.latent)
        return self._latent_head(head, logits, self._latent_logit(head, latent))

    def _latent_head(self, head: LatentHead, logits: str, h: str) -> dict[str, str]:
        """Return the edges of all outputs from the tasks' logits [N or 1, 2·T] and the latent one [N, 1]."""
        return write_latent_head(self.writer, head, logits, h)

    def _task_logits(self, head: IndependentHead | LatentHead, representations: Sequence[str]) -> str:
        """Return the tasks' logits [N, L·T]."""
        towers = self.writer.concat(self._mlp(head.towers, representations))
        return write_task_logits(self.writer, head, towers)

    def _latent_logit(self, head: LatentHead, latent: str) -> str:
        """Return the logit of P(UP) [N, 1] from the latent network's output."""
        return self._linear(self._as_float(latent), array(head.latent_weight), array(head.latent_bias))


def _first_layers(name: str, mlp: BatchedMLP) -> dict[str, Layer]:
    weight, bias = array(mlp.weights[0]), array(mlp.biases[0])
    return {f"{name} {e}": (weight[e], bias[e, 0]) for e in range(len(weight))}


def _places_of_experts(level: PLELevel) -> Weights:
    """Return 0/1 [T·(shared + own), T·E]: where each task's shares belong among all experts."""
    each, experts = level.shared + level.own, level.shared + level.tasks * level.own
    places = np.zeros((level.tasks, each, level.tasks, experts), dtype=np.float32)
    for t in range(level.tasks):
        own = level.shared + t * level.own
        for i, expert in enumerate([*range(level.shared), *range(own, own + level.own)]):
            places[t, i, t, expert] = 1
    return places.reshape(level.tasks * each, level.tasks * experts)
