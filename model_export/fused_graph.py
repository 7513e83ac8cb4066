"""The int8 serving graphs in operators of our own: the same integers, in fewer and faster nodes (`bundle.operators`).

All networks of a kind are one node, whose hidden layers never leave the first-level cache; mixtures, towers and logits
are another; the request's share of first layers a third. A bundle holds such a graph beside the stock one, which any
ONNX Runtime can run: the service takes this one where the operators are usable. Proven equal to the stock one by
`parity`: bytes are the same, floats are summed in another order.

Legend: N candidates, E networks, H hidden width, M mixtures, T tasks, L logits per task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import ITEM_ROWS, P_JOINT, P_UP, P
from model_export.head_graph import bounds_of, last_layer
from model_export.int8_graph import Int8Graph
from model_export.item_columns import ITEM_ZERO_POINT
from model_export.item_halves import networks_on_x
from model_export.item_int8_rank import RankLayer1Int8, RankPackedInt8
from model_export.quantise import REQUEST_STEPS, IntegerLayer, Quantised, RequestHalf
from model_export.wiring import array
from training.models.backbones import Gates
from training.models.heads import IndependentHead, LatentHead
from training.models.inputs import Block
from training.models.layers import BatchedMLP
from training.models.structure import unrelated

MOST_LAYERS = 8
MOST_TASKS = 64


def can_fuse(quantised: Quantised) -> bool:
    """Return whether the operators take networks and towers this deep."""
    depths = [len(layers) for layers in quantised.layers.values()]
    return max([*depths, len(quantised.network.head.towers.weights)]) <= MOST_LAYERS


class FusedInt8Graph(Int8Graph):
    """One quantised network being written as a graph of our operators."""

    def __init__(self, *given: object) -> None:
        """Take what the stock graph takes."""
        super().__init__(*given)  # type: ignore[arg-type]
        self.share = ""  # the request's share of all layers that read x, float32 [1, all]
        self.places_in_share: dict[str, int] = {}
        self.stacks: dict[tuple[str, ...], str] = {}  # of networks' outputs: all of them as one edge, bytes [N, E, H]
        self.logits_of: dict[str, str] = {}  # of shares
        self.mixed: dict[tuple[str, ...], tuple[str, str, list[int]]] = {}  # of mixtures: shares, experts, layout

    # ---- inputs

    def _gather_bytes(self, table: str, codes: str, offsets: NDArray[np.integer], block: Block) -> str:
        w, layout = self.writer, np.array([len(offsets), block.size], dtype=np.int64)
        return w.ours("GatherBytes", codes, w.constant(layout), w.constant(offsets.astype(np.int32)), table)

    def _embed(self, block: Block, codes: str, rows: int) -> str:
        if block.is_list:
            return super()._embed(block, codes, rows)
        offsets = self.network.inputs.offsets[block.start : block.end].numpy().astype(np.int32)
        layout = np.array([len(offsets), block.size], dtype=np.int64)
        w = self.writer
        return w.ours("GatherFloats", codes, w.constant(layout), w.constant(offsets), self.tables[str(block.size)])

    # ---- networks

    def _use_share(self, share: str, widths: dict[str, int]) -> None:
        ends = np.cumsum(list(widths.values())).tolist()
        self.share, self.places_in_share = share, dict(zip(widths, [0, *ends], strict=False))

    def _biases(self, layers: Sequence[IntegerLayer]) -> str:
        """Return constant biases side by side."""
        none = np.zeros(0, dtype=np.int32)
        constant = [np.rint(layer.bias_EH).astype(np.int32).reshape(-1) for layer in layers]
        return self.writer.constant(np.concatenate([none, *constant]))

    def _on_x(self, name: str) -> str:
        if name not in self.linear_layers:
            return super()._on_x(name)
        w, layer = self.writer, self.linear_layers[name]
        layout = [ITEM_ZERO_POINT, self.places_in_share[name], *layer.weight_EKH[0].shape]
        given = (np.array(layout, dtype=np.int64), layer.weight_EKH[0], layer.scale_EH[0])
        return w.ours("ByteLinear", self.x_item, *(w.constant(x) for x in given), self.share)

    def _share_in_bytes(self, x_request: str | None, halves: Sequence[RequestHalf]) -> str:
        if x_request is None:
            return super()._share_in_bytes(x_request, halves)
        w = self.writer
        weight = np.concatenate([half.weight_KH for half in halves], axis=1)
        worth, bias = (np.concatenate(parts) for parts in zip(*((h.step_H, h.bias_H) for h in halves), strict=True))
        step = np.array([self.quantised.request_reach / REQUEST_STEPS], dtype=np.float32)
        given = (np.array(weight.shape, dtype=np.int64), weight, worth, bias, step)
        return w.ours("RequestShare", x_request, *(w.constant(x) for x in given))

    def _experts_on_x(self, name: str, mlp: BatchedMLP) -> list[str]:
        if mlp not in self.quantised.layers:
            return super()._experts_on_x(name, mlp)
        width, layers = len(self.quantised.items.source_K), self.quantised.layers[mlp]
        layout = [ITEM_ZERO_POINT, 0, width, 0, self.places_in_share[f"{name} 0"]]
        return self._byte_networks(self.x_item, layout, layers, self._biases(layers[1:]), [self.share])

    def _experts(self, mlp: BatchedMLP, xs: Sequence[str]) -> list[str]:
        if mlp not in self.quantised.layers:
            return super()._experts(mlp, xs)
        w, layers = self.writer, self.quantised.layers[mlp]
        in_bytes = {x: w.op("QuantizeLinear", x, self.one, self.zero) for x in dict.fromkeys(xs)}
        layout = [0, 1, layers[0].weight_EKH[:, :, 0].size, 0, 0]
        return self._byte_networks(w.concat([in_bytes[x] for x in xs]), layout, layers, self._biases(layers))

    def _byte_networks(
        self, x: str, layout: Sequence[int], layers: Sequence[IntegerLayer], biases: str, more: Sequence[str] = ()
    ) -> list[str]:
        """Return networks' outputs [N, 1, H] in bytes.

        `layout` is the input's zero point, whether each network reads columns of its own, a row's stride, its offset,
        and that in the request's share; `more` are that share and what inputs count as at least.
        """
        w, (networks, width, _) = self.writer, layers[0].weight_EKH.shape
        sizes = [networks, *layout, width, *(layer.weight_EKH.shape[2] for layer in layers)]
        weights = np.concatenate([layer.weight_EKH.reshape(-1) for layer in layers])
        scales = np.concatenate([layer.scale_EH.reshape(-1) for layer in layers])
        constants = [w.constant(given) for given in (np.array(sizes, dtype=np.int64), weights, scales)]
        together = w.ours("ByteNetworks", x, *constants, biases, *more)
        outputs = w.split(together, [1] * networks)
        self.stacks[tuple(outputs)] = together
        return outputs

    # ---- mixtures, towers, logits

    def _softmax(self, logits: str, gates: Gates) -> str:
        shares = super()._softmax(logits, gates)
        self.logits_of[shares] = logits
        return shares

    def _unmixed(self, experts: Sequence[str]) -> list[str]:
        if tuple(experts) not in self.stacks:
            return super()._unmixed(experts)
        own = np.eye(self.tasks) if len(experts) > 1 else np.ones((self.tasks, 1))
        return self._mix(self.writer.constant(own.astype(np.float32)[None]), experts)

    def _mix(self, shares: str, experts: Sequence[str], mixtures: int | None = None) -> list[str]:
        stack = self.stacks.get(tuple(experts))
        if stack is None:
            return super()._mix(shares, experts, mixtures)
        w, width = self.writer, self.network.backbone.outputs
        mixtures = self.tasks if mixtures is None else mixtures
        given, layout = self.logits_of.get(shares, shares), [mixtures, len(experts), int(shares in self.logits_of)]
        mixed = w.ours("Mixtures", given, stack, w.constant(np.array([*layout, 0, width], dtype=np.int64)))
        each = w.split(mixed, [width] * mixtures)
        self.mixed[tuple(each)] = given, stack, layout
        return each

    def _task_logits(self, head: IndependentHead | LatentHead, representations: Sequence[str]) -> str:
        if tuple(representations) not in self.mixed:
            return super()._task_logits(head, representations)
        shares, stack, layout = self.mixed[tuple(representations)]
        weights, biases = ([array(x) for x in xs] for xs in (head.towers.weights, head.towers.biases))
        weight, bias = last_layer(head)
        widths = [self.network.backbone.outputs, *(x.shape[2] for x in weights)]
        return self._towers(shares, stack, [*layout, len(bias), *widths], [*weights, weight], [*biases, bias])

    def _latent_logit(self, head: LatentHead, latent: str) -> str:
        if (latent,) not in self.stacks:
            return super()._latent_logit(head, latent)
        weight, bias = array(head.latent_weight), array(head.latent_bias)
        all_of_it = self.writer.constant(np.ones((1, 1), dtype=np.float32))
        return self._towers(all_of_it, self.stacks[latent,], [1, 1, 0, 1, len(weight)], [weight], [bias])

    def _latent_head(self, head: LatentHead, logits: str, h: str) -> dict[str, str]:
        if len(head.alpha) > MOST_TASKS:
            return super()._latent_head(head, logits, h)
        structure = head.structure or unrelated(len(head.alpha))
        layout = [len(head.alpha), *structure.order, *(parent + 1 for parent in structure.parents)]
        sizes, bounds = np.array(layout, dtype=np.int64), np.concatenate(bounds_of(head))
        outputs = self.writer.ours_of("LatentHead", 3, logits, h, *(self.writer.constant(x) for x in (sizes, bounds)))
        return dict(zip((P, P_JOINT, P_UP), outputs, strict=True))

    def _towers(
        self, shares: str, experts: str, layout: Sequence[int],
        weights: Sequence[NDArray[np.float32]], biases: Sequence[NDArray[np.float32]],
    ) -> str:  # fmt: skip
        w = self.writer
        flat = [np.concatenate([x.reshape(-1) for x in xs]) for xs in (weights, biases)]
        sizes = w.constant(np.array(layout, dtype=np.int64))
        return w.ours("Mixtures", shares, experts, sizes, *(w.constant(x) for x in flat))


class FusedRankPacked(FusedInt8Graph, RankPackedInt8):
    """Rows that are x in bytes → probabilities."""


class FusedRankLayer1(FusedInt8Graph, RankLayer1Int8):
    """Rows of first layers' item halves → probabilities."""

    def __init__(self, *given: object) -> None:
        """Take what the stock graph takes."""
        super().__init__(*given)
        self.biases_of: dict[BatchedMLP, str] = {}  # int32 [all], layer after layer [E, H]

    def _open_rows(self) -> str:
        """Return the logits' part [N, 2·G] of the rows; networks read theirs where they lie."""
        w, hidden, logits = self.writer, sum(self.hidden.values()), sum(self.linears.values())
        if any(len(mlp.weights) == 1 for mlp in networks_on_x(self.quantised).values()):
            super()._open_rows()  # such a network is no product any more
        bounds = (w.constant(np.array([x], dtype=np.int64)) for x in (hidden, hidden + 2 * logits, 1))
        return w.op("Slice", ITEM_ROWS, *bounds) if logits else ""

    def _open_later_biases(self) -> None:
        for group, mlp in networks_on_x(self.quantised).items():
            if len(mlp.weights) > 1:
                second = self._second_bias(group, self._second_layer(group, mlp))
                later = self.quantised.layers[mlp][2:]
                self.biases_of[mlp] = self.writer.concat([second, *([self._biases(later)] if later else [])], axis=0)

    def _experts_on_x(self, name: str, mlp: BatchedMLP) -> list[str]:
        if mlp not in self.quantised.layers or len(mlp.weights) == 1:
            return RankLayer1Int8._experts_on_x(self, name, mlp)
        before = 0
        for group, other in networks_on_x(self.quantised).items():
            if group == name:
                break
            before += self.quantised.layers[other][0].scale_EH.size
        row = sum(self.hidden.values()) + 2 * sum(self.linears.values())
        layers = [self.second_layers[mlp], *self.quantised.layers[mlp][2:]]
        above, _ = self.at_least_of_group[name]
        return self._byte_networks(ITEM_ROWS, [0, 1, row, before, 0], layers, self.biases_of[mlp], ["", above])
