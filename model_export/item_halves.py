"""The item halves of an int8 graph's first layers: which there are, and in what steps they become bytes.

Legend: E networks, H hidden width, G logits of layers without ReLU (gates, the wide layer), K all halves
side by side: hidden channels, then logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model_export.quantise import IntegerLayer, Quantised
from model_export.wiring import backbone_reads_items, first_experts, latent_network, linears_on_items
from training.models.layers import BatchedMLP

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HalfSteps:
    """How item halves [N, K] become whole numbers: half = least + whole number · step."""

    least_K: Floats
    step_K: Floats


def networks_on_x(quantised: Quantised) -> dict[str, BatchedMLP]:
    """Return the networks in integers that read x, by name."""
    network = quantised.network
    experts = first_experts(network) if backbone_reads_items(network) else None
    named = {"expert": experts, "latent": latent_network(network)}
    return {name: mlp for name, mlp in named.items() if mlp is not None}


def first_layer(quantised: Quantised, module: nn.Module) -> IntegerLayer:
    """Return the layer that reads x."""
    return quantised.layers[module][0]


def hidden_widths(quantised: Quantised) -> dict[str, int]:
    """Return the width of each network's first layer, by name and number: `expert 0`, …"""
    return {
        f"{name} {e}": first_layer(quantised, mlp).scale_EH.shape[1]
        for name, mlp in networks_on_x(quantised).items()
        for e in range(len(first_layer(quantised, mlp).scale_EH))
    }


def linear_widths(quantised: Quantised) -> dict[str, int]:
    """Return how many logits each layer without ReLU that reads x has, all side by side, by name."""
    linears = linears_on_items(quantised.network).items()
    return {name: first_layer(quantised, module).scale_EH.shape[1] for name, module in linears}
