"""Which layers of a network read the items, and what reads their outputs: graph and quantisation must agree on it.

Legend: E experts, H width of their last layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model_export.errors import PrecisionRefused
from training.models.backbones import MMOE, PLE, Gates, PLELevel, SeparateBottoms, SharedBottom
from training.models.heads import IndependentHead, LatentHead, Wide
from training.models.layers import BatchedMLP
from training.models.network import Network

Weights = NDArray[np.float32]
Linear = Gates | Wide
WIDE = "wide"


def array(tensor: Tensor) -> Weights:
    """Return a tensor's numbers as float32."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def first_experts(network: Network) -> BatchedMLP:
    """Return the experts, or bottoms, that read the backbone's input."""
    backbone = network.backbone
    if isinstance(backbone, SharedBottom):
        return backbone.bottom
    if isinstance(backbone, SeparateBottoms):
        return backbone.bottoms
    level = backbone.levels[0] if isinstance(backbone, PLE) else backbone
    assert isinstance(level, MMOE | PLELevel)
    return level.experts


def first_linears(network: Network) -> dict[str, Linear]:
    """Return the layers without ReLU that read the backbone's input, by name: gates, and the wide layer."""
    backbone = network.backbone
    wide: dict[str, Linear] = {} if network.wide is None else {WIDE: network.wide}
    if isinstance(backbone, SharedBottom | SeparateBottoms):
        return wide
    first = backbone.levels[0] if isinstance(backbone, PLE) else backbone
    assert isinstance(first, MMOE | PLELevel)
    shared = first.shared_gate if isinstance(first, PLELevel) else None
    return {"gates": first.gates} | ({} if shared is None else {"shared gate": shared}) | wide


def as_one_layer(linear: Linear) -> tuple[Weights, Weights]:
    """Return the weight [K, M·E] and bias [M·E] of M gates over E experts, or the wide layer's M logits of E tasks."""
    weight = array(linear.weight)
    bias = array(linear.bias).reshape(-1) if isinstance(linear, Gates) else np.zeros(weight.shape[0] * weight.shape[2])
    return weight.transpose(1, 0, 2).reshape(weight.shape[1], -1), bias.astype(np.float32)


def backbone_reads_items(network: Network) -> bool:
    """Return whether experts, gates and the wide layer see the items; habit towers see the request only."""
    return not network.config.habit_towers


def linears_on_items(network: Network) -> dict[str, Linear]:
    """Return the layers without ReLU that read the items themselves, by name."""
    return first_linears(network) if backbone_reads_items(network) else {}


def networks_on_items(network: Network) -> list[tuple[BatchedMLP, bool]]:
    """Return the expert and latent networks that are run for every item, and whether each reads the input itself.

    Raises:
        PrecisionRefused: there is none, or one has no layers.
    """
    found: list[tuple[BatchedMLP, bool]] = []
    if backbone_reads_items(network):
        found.append((first_experts(network), True))
        if isinstance(network.backbone, PLE):
            found += [(level.experts, False) for level in later_levels(network.backbone)]
    latent = latent_network(network)
    found += [] if latent is None else [(latent, True)]
    if any(len(mlp.weights) == 0 for mlp, _ in found):
        raise PrecisionRefused("int8", found="a network without hidden layers", expected="at least one layer each")
    return found


def latent_network(network: Network) -> BatchedMLP | None:
    """Return the network of P(UP), if there is one."""
    return network.head.latent if isinstance(network.head, LatentHead) else None


def later_levels(ple: PLE) -> list[PLELevel]:
    """Return the levels that read representations."""
    return [level for level in list(ple.levels)[1:] if isinstance(level, PLELevel)]


def readers(network: Network, mlp: BatchedMLP) -> list[Tensor]:
    """Return the weights [..., H, *] that read the outputs of experts, or of the latent network."""
    head, backbone = network.head, network.backbone
    assert isinstance(head, LatentHead | IndependentHead)
    if isinstance(head, LatentHead) and mlp is head.latent:
        return [head.latent_weight]
    if isinstance(backbone, PLE):
        levels = [level for level in backbone.levels if isinstance(level, PLELevel)]
        after = [b for a, b in zip(levels, levels[1:], strict=False) if a.experts is mlp]
        if after:
            shared = [] if after[0].shared_gate is None else [after[0].shared_gate.weight]
            return [after[0].experts.weights[0], after[0].gates.weight, *shared]
    return [head.towers.weights[0] if len(head.towers.weights) else head.weight]


def outputs_are_mixed(network: Network, mlp: BatchedMLP) -> bool:
    """Return whether the outputs of networks side by side are summed with one another."""
    return mlp is not latent_network(network) and not isinstance(network.backbone, SeparateBottoms)
