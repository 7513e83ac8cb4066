"""What a trained network becomes in 8-bit integers: unsigned activations, signed weights, one scale each.

Scales cost nothing while serving: ReLU is homogeneous, so the scale of each hidden channel is folded into the
weights on both sides (`equalise`), after which every activation is an integer 0…255 and the scale of a
layer's weights, one per output channel, is all that is left. Activations are calibrated on their maximum over
real rows; clipping at a percentile gave 4–7 times the error. Knows nothing of ONNX.

Legend: E networks side by side, K input width, Kr and Ki its request and item part, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.errors import PrecisionRefused
from training.models.backbones import MMOE, PLE, Gates, PLELevel, SharedBottom
from training.models.heads import IndependentHead, LatentHead
from training.models.layers import BatchedMLP, InputLayer
from training.models.network import Network

ACTIVATION_STEPS = 255
WEIGHT_STEPS = 127
ITEM_ZERO_POINT = 128
QUIET_CHANNEL = 0.05
"""A channel counts as at least this share of its network's loudest, so that one unseen peak does not clip."""
_ROWS_AT_ONCE = 2048

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class IntegerLayer:
    """One layer of E networks: y = round((x_int · weight + round(bias)) · scale), clipped to 0…255.

    Attributes:
        weight_EKH: int8; of a layer that reads x, its item part only.
        scale_EH: of an accumulated unit.
        bias_EH: in accumulated units, not yet rounded.
        request_EKH: the request part's weights in accumulated units, float32; None for other layers.
    """

    weight_EKH: NDArray[np.int8]
    scale_EH: Floats
    bias_EH: Floats
    request_EKH: Floats | None = None


@dataclass(frozen=True)
class Quantised:
    """A network in integers.

    Attributes:
        network: function-preserving copy whose hidden activations span 0…255; what stays in float32 reads it.
        item_scale_K: what one step of each item input is worth [Ki].
        layers: integer layers of each expert and latent network, and of the gates that read x.
    """

    network: Network
    item_scale_K: Floats
    layers: dict[nn.Module, tuple[IntegerLayer, ...]]


def quantise(network: Network, codes: Tensor, values: Tensor) -> Quantised:
    """Return a network in integers, calibrated on encoded rows.

    Raises:
        PrecisionRefused: the network has experts or a latent network without layers.
    """
    maxima = _maxima(network, codes, values)
    level = equalise(network, maxima)
    item_scale = _item_scale(network.inputs, values)
    request_width = network.inputs.parts[0].width
    layers: dict[nn.Module, tuple[IntegerLayer, ...]] = {}
    for mlp, reads_x in _integer_networks(level):
        weights, biases = _arrays(mlp.weights), [bias[:, 0] for bias in _arrays(mlp.biases)]
        first = _on_x(weights[0], biases[0], item_scale, request_width) if reads_x else _layer(weights[0], biases[0])
        layers[mlp] = (first, *(_layer(w, b) for w, b in zip(weights[1:], biases[1:], strict=True)))
    for gates in gates_on_x(level):
        weight, bias = _arrays([gates.weight, gates.bias])
        wide = weight.transpose(1, 0, 2).reshape(1, weight.shape[1], -1)
        layers[gates] = (_on_x(wide, bias.reshape(1, -1), item_scale, request_width),)
    return Quantised(level, item_scale, layers)


def equalise(network: Network, maxima: dict[str, list[Tensor]]) -> Network:
    """Return an equal network, embedding tables shared, whose activations of those maxima span 0…255."""
    level = copy_without_tables(network)
    names = {module: name for name, module in level.named_modules()}
    for mlp, _ in _integer_networks(level):
        scales = [_channel_scale(maximum) for maximum in maxima[names[mlp]]]
        if mlp is not _latent(level):  # experts are mixed with one another: one unit per channel for all of them
            scales[-1] = scales[-1].amax(0, keepdim=True).expand_as(scales[-1])
        _rescale(mlp, scales)
        with torch.no_grad():
            for reader in _readers(level, mlp):
                reader.mul_(scales[-1][0].unsqueeze(1))
    return level


def gates_on_x(network: Network) -> list[Gates]:
    """Return the gates that read the network's input."""
    backbone = network.backbone
    if isinstance(backbone, SharedBottom):
        return []
    first = backbone if isinstance(backbone, MMOE) else backbone.levels[0]
    assert isinstance(first, MMOE | PLELevel)
    shared = first.shared_gate if isinstance(first, PLELevel) else None
    return [first.gates] if shared is None else [first.gates, shared]


@dataclass(frozen=True)
class ItemRows:
    """Where one item feature's embeddings lie: rows of the table of its size, columns of the item part of x."""

    size: int
    first_row: int
    end_row: int
    at: int
    is_list: bool


def item_rows(inputs: InputLayer) -> list[ItemRows]:
    """Return where each embedded item feature lies, in the order of x."""
    starts: dict[int, set[int]] = {}
    for part in inputs.parts:
        for block in part.blocks:
            starts.setdefault(block.size, set()).update(inputs.offsets[block.start : block.end].tolist())
    found, at = [], 0
    for block in inputs.parts[1].blocks:
        for row in inputs.offsets[block.start : (block.start + 1 if block.is_list else block.end)].tolist():
            end = min((r for r in starts[block.size] if r > row), default=len(inputs.tables[str(block.size)]))
            found.append(ItemRows(block.size, row, end, at, block.is_list))
            at += block.size
    return found


def _integer_networks(network: Network) -> list[tuple[BatchedMLP, bool]]:
    """Return the expert and latent networks, and whether each reads x."""
    backbone = network.backbone
    found: list[tuple[BatchedMLP, bool]]
    if isinstance(backbone, PLE):
        levels = [level for level in backbone.levels if isinstance(level, PLELevel)]
        found = [(level.experts, index == 0) for index, level in enumerate(levels)]
    else:
        found = [(backbone.bottom if isinstance(backbone, SharedBottom) else backbone.experts, True)]
    latent = _latent(network)
    found += [] if latent is None else [(latent, True)]
    if any(len(mlp.weights) == 0 for mlp, _ in found):
        raise PrecisionRefused("int8", found="a network without hidden layers", expected="at least one layer each")
    return found


def _latent(network: Network) -> BatchedMLP | None:
    return network.head.latent if isinstance(network.head, LatentHead) else None


def _readers(network: Network, mlp: BatchedMLP) -> list[Tensor]:
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


def copy_without_tables(network: Network) -> Network:
    """Return a copy in evaluation mode that shares the embedding tables."""
    tables = {id(table): table for table in network.inputs.parameters()}
    return copy.deepcopy(network, tables).eval()


def _maxima(network: Network, codes: Tensor, values: Tensor) -> dict[str, list[Tensor]]:
    """Return the largest activation of each layer [E, H] by network name.

    Beside the rows as they are, each row's items are seen with another row's request, as when ranking.
    """
    names = {module: name for name, module in network.named_modules()}
    found: dict[str, list[Tensor]] = {}

    def look(mlp: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(mlp, BatchedMLP)
        seen = [hidden.amax(1) for hidden in _hidden(mlp, inputs[0])]
        known = found.get(names[mlp], seen)
        found[names[mlp]] = [torch.maximum(a, b) for a, b in zip(known, seen, strict=True)]

    hooks = [mlp.register_forward_pre_hook(look) for mlp, _ in _integer_networks(network)]
    other = torch.arange(len(codes)).roll(len(codes) // 2)
    request, item = network.inputs.parts
    mixed_codes, mixed_values = codes.clone(), values.clone()
    request_codes = item.blocks[0].start if item.blocks else codes.shape[1]
    mixed_codes[:, :request_codes] = codes[other, :request_codes]
    mixed_values[:, : request.values_end] = values[other, : request.values_end]
    try:
        with torch.inference_mode():
            for some_codes, some_values in ((codes, values), (mixed_codes, mixed_values)):
                for at in range(0, len(codes), _ROWS_AT_ONCE):
                    network(some_codes[at : at + _ROWS_AT_ONCE], some_values[at : at + _ROWS_AT_ONCE])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _hidden(mlp: BatchedMLP, x: Tensor) -> Iterator[Tensor]:
    """Yield the activations [E, B, H] layer by layer."""
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        x = x.unsqueeze(0).expand(weight.shape[0], -1, -1) if x.dim() == 2 else x
        x = torch.relu(torch.baddbmm(bias, x, weight))
        yield x


def _channel_scale(maximum_EH: Tensor) -> Tensor:
    floored = torch.maximum(maximum_EH, QUIET_CHANNEL * maximum_EH.amax(1, keepdim=True))
    return torch.where(floored > 0, floored, torch.ones_like(floored)) / ACTIVATION_STEPS


def _rescale(mlp: BatchedMLP, scales: list[Tensor]) -> None:
    """Fold one scale [E, H] per layer into the weights on both sides of it."""
    before: Tensor | None = None
    with torch.no_grad():
        for weight, bias, scale in zip(mlp.weights, mlp.biases, scales, strict=True):
            if before is not None:
                weight.mul_(before.unsqueeze(2))
            weight.div_(scale.unsqueeze(1))
            bias.div_(scale.unsqueeze(1))
            before = scale


def _item_scale(inputs: InputLayer, values: Tensor) -> Floats:
    """Return the worth of one step [Ki]: each embedding column's largest entry, each value's largest in the rows."""
    part = inputs.parts[1]
    tables = {size: table.detach() for size, table in inputs.tables.items()}
    largest = [tables[str(rows.size)][rows.first_row : rows.end_row].abs().amax(0) for rows in item_rows(inputs)]
    if part.values_end > part.values_start:
        largest.append(values[:, part.values_start : part.values_end].abs().amax(0))
    scale = torch.cat(largest) / WEIGHT_STEPS
    return np.asarray(torch.where(scale > 0, scale, torch.ones_like(scale)).numpy(), dtype=np.float32)


def _layer(weight_EKH: Floats, bias_EH: Floats) -> IntegerLayer:
    weight, scale = _steps(weight_EKH)
    return IntegerLayer(weight, scale, bias_EH / scale)


def _on_x(weight_EKH: Floats, bias_EH: Floats, item_scale_K: Floats, request_width: int) -> IntegerLayer:
    weight, scale = _steps(weight_EKH[:, request_width:] * item_scale_K[:, None])
    request = weight_EKH[:, :request_width] / scale[:, None]
    return IntegerLayer(weight, scale, bias_EH / scale, request.astype(np.float32))


def _steps(weight_EKH: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return int8 weights and the worth of one step per output channel."""
    largest = np.abs(weight_EKH).max(axis=1, initial=0)
    scale = (np.where(largest > 0, largest, 1) / WEIGHT_STEPS).astype(np.float32)
    return np.rint(weight_EKH / scale[:, None]).astype(np.int8), scale


def _arrays(tensors: Any) -> list[Floats]:
    return [np.asarray(tensor.detach().numpy(), dtype=np.float32) for tensor in tensors]
