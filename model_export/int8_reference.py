"""The int8 graph's arithmetic in plain torch: what `int8_graph` must give, and its oracle.

A copy of the network whose quantised parts compute with whole numbers in float64, exact up to 2^53.
Legend: B batch, E networks, K input width, H hidden width.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from model_export.quantise import ACTIVATION_STEPS, REQUEST_STEPS, IntegerLayer, Quantised
from training.models.backbones import Gates
from training.models.heads import Wide
from training.models.network import Network


def reference_network(quantised: Quantised) -> Network:
    """Return a network with the outputs that the int8 graph must give."""
    original = quantised.network
    network = copy.deepcopy(original, {id(table): table for table in original.inputs.parameters()})
    request_width = original.inputs.parts[0].width
    for (name, module), twin in zip(original.named_modules(), network.modules(), strict=True):
        del twin
        if module not in quantised.layers:
            continue
        parent, _, attribute = name.rpartition(".")
        layers = quantised.layers[module]
        replacement = _Gates if isinstance(module, Gates) else _Wide if isinstance(module, Wide) else _Networks
        setattr(network.get_submodule(parent), attribute, replacement(layers, quantised, request_width, module))
    return network.eval()


class _OnX(nn.Module):
    """Integer layers, the first of which may read x = [request part | item part]."""

    def __init__(self, layers: tuple[IntegerLayer, ...], quantised: Quantised, request_width: int) -> None:
        super().__init__()
        self.layers, self.request_width = layers, request_width
        self.items, self.request_reach = quantised.items, quantised.request_reach

    def accumulated(self, x_BK: Tensor) -> Tensor:
        """Return the item part's product and the request's share, [E, B, H] each, in accumulated units."""
        layer = self.layers[0]
        steps = self.items.steps(x_BK[:, self.request_width :])
        assert layer.request is not None
        request = self._request_steps(x_BK[:, : self.request_width])
        shares = [
            request @ _whole(half.weight_KH) * torch.from_numpy(half.step_H).double() + torch.from_numpy(half.bias_H)
            for half in layer.request
        ]
        return torch.stack([steps.double() @ _whole(layer.weight_EKH), torch.stack(shares)])

    def _request_steps(self, x_request: Tensor) -> Tensor:
        """Return the request part of x in whole steps of two bytes, float64 [B, Kr]."""
        fine = torch.tensor(self.request_reach / REQUEST_STEPS)
        coarse = 256 * fine
        high = (x_request / coarse).round().clamp(-128, 127)
        low = ((x_request - high * coarse) / fine).round().clamp(-128, 127)
        return high.double() * coarse.double() + low.double() * fine.double()


class _Networks(_OnX):
    def __init__(self, layers: tuple[IntegerLayer, ...], quantised: Quantised, width: int, module: nn.Module) -> None:
        super().__init__(layers, quantised, width)
        del module

    def forward(self, x: Tensor) -> Tensor:
        """Return [E, B, H], whole numbers 0…255."""
        if self.layers[0].request is not None:
            item, share = self.accumulated(x)
            y, later = _rescaled(item + share.round(), self.layers[0]), self.layers[1:]
        else:
            y, later = x.round().clamp(0, ACTIVATION_STEPS).double(), self.layers
        for layer in later:
            bias = torch.from_numpy(np.rint(layer.bias_EH)).double()[:, None]
            y = _rescaled(y @ _whole(layer.weight_EKH) + bias, layer)
        return y.float()


class _Linear(_OnX):
    def __init__(self, layers: tuple[IntegerLayer, ...], quantised: Quantised, width: int, module: nn.Module) -> None:
        super().__init__(layers, quantised, width)
        self.shape = module.get_parameter("weight").shape  # [M, K, E]

    def logits(self, x: Tensor) -> Tensor:
        """Return [M, B, E]."""
        item, share = self.accumulated(x)
        logits_BG: Tensor = (item + share)[0] * torch.from_numpy(self.layers[0].scale_EH[0]).double()
        return logits_BG.float().view(-1, self.shape[0], self.shape[2]).transpose(0, 1)


class _Gates(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        """Return softmax weights [M, B, E]."""
        return torch.softmax(self.logits(x), dim=2)


class _Wide(_Linear):
    def forward(self, x: Tensor) -> Tensor:
        """Return logits [L, B, T]."""
        return self.logits(x)


def _rescaled(accumulated: Tensor, layer: IntegerLayer) -> Tensor:
    scale = torch.from_numpy(layer.scale_EH).double()[:, None]
    return (accumulated * scale).round().clamp(0, ACTIVATION_STEPS)


def _whole(weight: np.ndarray[tuple[int, ...], np.dtype[np.int8]]) -> Tensor:
    return torch.from_numpy(weight.astype(np.float64))
