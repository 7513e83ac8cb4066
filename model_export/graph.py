"""The serving graph of a network: one request, N candidates, the request's half of layer 1 computed once.

The network's input is x = [request part | item part]. Every layer that reads x is written as
Gemm(x_item [N, Ki], W_item, C = Gemm(x_request [1, Kr], W_request, b)): the request's share is one row, added
to all candidates. Each expert is a chain of its own, so that its [N, H] activations stay in cache.
Proven equal to the training network by `parity`.

Legend: N candidates, Kr and Ki widths of the two parts of x, E experts, M mixtures, T tasks, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bundle.features import MISSING_CODE, FeatureSchema
from bundle.manifest import ITEM_CODES, ITEM_VALUES, MODEL_FILE, REQUEST_CODES, REQUEST_VALUES, Tensor
from bundle.read import input_tensors, output_tensors
from model_export.onnx_writer import GraphWriter
from training.models.backbones import MMOE, PLE, Gates, PLELevel, SharedBottom
from training.models.heads import IndependentHead, LatentHead
from training.models.layers import BatchedMLP, Block, PartLayout
from training.models.network import Network

Weights = NDArray[np.float32]


def write_serving_graph(network: Network, schema: FeatureSchema, folder: Path) -> None:
    """Write model.onnx and its weights into `folder`."""
    graph = ServingGraph(network, input_tensors(schema))
    outputs = output_tensors(graph.tasks, has_latent=network.config.has_latent)
    edges = graph.build()
    graph.writer.write(folder, MODEL_FILE, graph.inputs, [(tensor, edges[tensor.name]) for tensor in outputs])


class ServingGraph:
    """One network being written as a graph."""

    def __init__(self, network: Network, inputs: Sequence[Tensor]) -> None:
        self.network, self.inputs, self.writer = network, tuple(inputs), GraphWriter()
        self.given = {tensor.name for tensor in inputs}
        self.tables = {
            size: self.writer.constant(_array(table), f"table_{size}") for size, table in network.inputs.tables.items()
        }
        self.request_width, self.item_width = (part.width for part in network.inputs.parts)
        self.tasks = len(network.head.alpha if isinstance(network.head, LatentHead) else network.head.bias)
        self.x_request: str | None = None
        self.x_item = ""

    def build(self) -> dict[str, str]:
        """Return the edge of each output by name."""
        request, item = self.network.inputs.parts
        if self.request_width:
            self.x_request = self._part(request, REQUEST_CODES, REQUEST_VALUES, rows=1)
        self.x_item = self._part(item, ITEM_CODES, ITEM_VALUES, rows=-1)
        backbone = self.network.backbone
        if isinstance(backbone, SharedBottom):
            representations = self._mlp_on_x(backbone.bottom) * self.tasks
        elif isinstance(backbone, MMOE):
            representations = self._mixtures(backbone.gates, self._mlp_on_x(backbone.experts))
        else:
            representations = self._ple(backbone)
        return self._head(representations)

    # ---- inputs

    def _part(self, part: PartLayout, codes: str, values: str, rows: int) -> str:
        """Return x of one part [rows, K]: embeddings block by block, then standardised values."""
        columns = self.writer.split(codes, [block.end - block.start for block in part.blocks]) if part.blocks else []
        pieces = [self._embed(block, edge, rows) for block, edge in zip(part.blocks, columns, strict=True)]
        if values in self.given:
            pieces.append(values)
        return self.writer.concat(pieces)

    def _embed(self, block: Block, codes: str, rows: int) -> str:
        w = self.writer
        offsets = self.network.inputs.offsets[block.start : block.end].numpy().astype(np.int32)
        embedded = w.op("Gather", self.tables[str(block.size)], w.op("Add", codes, w.constant(offsets, "offsets")))
        if not block.is_list:
            return w.reshape(embedded, [rows, block.width])
        missing = w.op("Equal", codes, w.constant(np.array(MISSING_CODE, dtype=np.int32)))
        given = w.reshape(w.op("Cast", w.op("Not", missing), to=1), [rows, 1, block.end - block.start])
        total = w.reshape(w.op("MatMul", given, embedded), [rows, block.size])
        axes = w.constant(np.array([1, 2], dtype=np.int64))
        count = w.reshape(w.op("ReduceSum", given, axes, keepdims=0), [rows, 1])
        return w.op("Div", total, w.op("Max", count, w.constant(np.array(1, dtype=np.float32))))

    # ---- layers

    def _on_x(self, weight_KH: Weights, bias_H: Weights) -> str:
        """Return x·W + b [N, H] with the request's share computed on one row."""
        w, item = self.writer, weight_KH[self.request_width :]
        bias = w.constant(bias_H)
        if self.x_request is not None:
            bias = w.op("Gemm", self.x_request, w.constant(weight_KH[: self.request_width]), bias)
        return w.op("Gemm", self.x_item, w.constant(item), bias)

    def _linear(self, x: str, weight_KH: Weights, bias_H: Weights) -> str:
        return self.writer.op("Gemm", x, self.writer.constant(weight_KH), self.writer.constant(bias_H))

    def _mlp_on_x(self, mlp: BatchedMLP) -> list[str]:
        """Return each network's output [N, H] where all read x."""
        first, bias = _array(mlp.weights[0]), _array(mlp.biases[0])
        hidden = [self.writer.op("Relu", self._on_x(first[e], bias[e, 0])) for e in range(len(first))]
        return self._mlp(mlp, hidden, from_layer=1)

    def _mlp(self, mlp: BatchedMLP, xs: Sequence[str], from_layer: int = 0) -> list[str]:
        """Return each network's output [N, H] from inputs of its own, starting at a layer."""
        weights, biases = [_array(x) for x in mlp.weights], [_array(x) for x in mlp.biases]
        outputs = []
        for e, x in enumerate(xs):
            for weight, bias in zip(weights[from_layer:], biases[from_layer:], strict=True):
                x = self.writer.op("Relu", self._linear(x, weight[e], bias[e, 0]))
            outputs.append(x)
        return outputs

    # ---- backbones

    def _mixtures(self, gates: Gates, experts: Sequence[str]) -> list[str]:
        """Return each mixture's representation [N, H]; every mixture weighs all experts, gates read x."""
        weight, bias = _array(gates.weight), _array(gates.bias)
        mixtures, width, count = weight.shape
        logits = self._on_x(weight.transpose(1, 0, 2).reshape(width, -1), bias.reshape(-1))
        shares = self.writer.op("Softmax", self.writer.reshape(logits, [-1, mixtures, count]), axis=2)
        return self._mix(shares, experts, mixtures)

    def _mix(self, shares: str, experts: Sequence[str], mixtures: int) -> list[str]:
        """Return `mixtures` sums [N, H] of the experts under shares [N, M, E]."""
        w, width = self.writer, self._expert_width
        stacked = w.reshape(w.concat(experts), [-1, len(experts), width])
        mixed = w.reshape(w.op("MatMul", shares, stacked), [-1, mixtures * width])
        return w.split(mixed, [width] * mixtures)

    @property
    def _expert_width(self) -> int:
        return int(self.network.backbone.outputs)

    def _ple(self, ple: PLE) -> list[str]:
        representations: list[str] | None = None  # None: x itself
        for level in ple.levels:
            assert isinstance(level, PLELevel)
            representations = self._ple_level(level, representations)
        assert representations is not None
        return representations

    def _ple_level(self, level: PLELevel, xs: list[str] | None) -> list[str]:
        """Return the tasks' representations and, but on the last level, the shared one behind them."""
        if xs is None:
            experts = self._mlp_on_x(level.experts)
        else:
            spread = [xs[-1]] * level.shared + [xs[t] for t in range(level.tasks) for _ in range(level.own)]
            experts = self._mlp(level.experts, spread)
        shared, own = experts[: level.shared], experts[level.shared :]
        mixed = []
        for t in range(level.tasks):
            mine = own[t * level.own : (t + 1) * level.own]
            mixed += self._mix(self._shares(level.gates, t, xs[t] if xs else None), [*shared, *mine], 1)
        if level.shared_gate is not None:
            mixed += self._mix(self._shares(level.shared_gate, 0, xs[-1] if xs else None), experts, 1)
        return mixed

    def _shares(self, gates: Gates, index: int, x: str | None) -> str:
        """Return one gate's softmax [N, 1, E] on x or on a representation."""
        weight, bias = _array(gates.weight)[index], _array(gates.bias)[index, 0]
        logits = self._on_x(weight, bias) if x is None else self._linear(x, weight, bias)
        return self.writer.reshape(self.writer.op("Softmax", logits, axis=1), [-1, 1, weight.shape[1]])

    # ---- heads

    def _head(self, representations: Sequence[str]) -> dict[str, str]:
        w, head = self.writer, self.network.head
        towers = w.concat(self._mlp(head.towers, representations))
        if isinstance(head, IndependentHead):
            return {"p": w.op("Sigmoid", self._task_logits(towers, _array(head.weight)[:, :, 0], _array(head.bias)))}
        weight = _array(head.weight)
        a = w.op("Sigmoid", self._task_logits(towers, weight[:, :, 0], _array(head.bias_f)))
        g = w.op("Sigmoid", self._task_logits(towers, weight[:, :, 1], _array(head.bias_g)))
        latent = self._mlp_on_x(head.latent)[0]
        h = self._linear(latent, _array(head.latent_weight), _array(head.latent_bias))  # [N, 1]
        u = w.op("Sigmoid", h)
        joint = w.op("Mul", a, u)  # Eq. 4
        b = w.op("Mul", g, w.constant(_array(head.alpha)))  # Eq. 10
        marginal = w.op("Add", joint, w.op("Mul", b, w.op("Sigmoid", w.op("Neg", h))))  # Eq. 1
        return {"p": marginal, "p_joint": joint, "p_up": w.reshape(u, [-1])}

    def _task_logits(self, towers: str, weight_TH: Weights, bias_T: Weights) -> str:
        """Return one logit per task [N, T] from the towers side by side, as one block-diagonal product."""
        tasks, width = weight_TH.shape
        blocks = np.zeros((tasks * width, tasks), dtype=np.float32)
        for t in range(tasks):
            blocks[t * width : (t + 1) * width, t] = weight_TH[t]
        return self._linear(towers, blocks, bias_T)


def _array(tensor: torch.Tensor) -> Weights:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)
