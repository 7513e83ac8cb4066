"""What a trained network becomes in 8-bit integers: unsigned activations, signed weights, one scale each.

Scales cost nothing while serving: ReLU is homogeneous, so the scale of each hidden channel is folded into the
weights on both sides (`equalise`), after which every activation is an integer 0…255 and the scale of a
layer's weights, one per output channel, is all that is left. Activations are calibrated on their maximum over
real rows; clipping at a percentile gave 4–7 times the error. Knows nothing of ONNX.

Processors without VNNI or AMX multiply bytes in pairs of neighbouring inputs, whose sum saturates at 16 bits. Steps of
weights are chosen so that no pair can reach that far (`steps_of`): the same bundle gives the same numbers everywhere.

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

from model_export.item_columns import WEIGHT_STEPS, ItemColumns, item_columns
from model_export.wiring import as_one_layer, linears_on_items, networks_on_items, outputs_are_mixed, readers
from training.models.layers import BatchedMLP
from training.models.network import Network

ACTIVATION_STEPS = 255
PAIR_STEPS = 127
"""Most steps of two neighbouring inputs' weights of one sign together: rounded 128, times 255 still 16 bits."""
REQUEST_STEPS = 256 * WEIGHT_STEPS
"""Steps, to either side, of the request part of x: two bytes, of which the high one is −127…127."""
QUIET_CHANNEL = 0.05
"""A channel counts as at least this share of its network's loudest, so that one unseen peak does not clip."""
_ROWS_AT_ONCE = 2048

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RequestHalf:
    """The request part of a layer that reads x: x_request · (weight · step) + bias, in units of the layer's own.

    Attributes:
        weight_KH: int8.
        step_H: what one step of the weights is worth; may be negative.
        bias_H: float32.
    """

    weight_KH: NDArray[np.int8]
    step_H: Floats
    bias_H: Floats

    def in_units(self, worth_H: Floats) -> RequestHalf:
        """Return the same half in units of which one of this half is worth so many."""
        return RequestHalf(self.weight_KH, self.step_H * worth_H, self.bias_H * worth_H)

    def plus(self, bias_H: Floats) -> RequestHalf:
        """Return the half with more bias."""
        return RequestHalf(self.weight_KH, self.step_H, self.bias_H + bias_H)


@dataclass(frozen=True)
class IntegerLayer:
    """One layer of E networks: y = round((x_int · weight + round(bias)) · scale), clipped to 0…255.

    Attributes:
        weight_EKH: int8; of a layer that reads x, its item part only.
        scale_EH: of an accumulated unit.
        bias_EH: in accumulated units, not yet rounded.
        request: of a layer that reads x, its request part of each network.
    """

    weight_EKH: NDArray[np.int8]
    scale_EH: Floats
    bias_EH: Floats
    request: tuple[RequestHalf, ...] | None = None


@dataclass(frozen=True)
class Quantised:
    """A network in integers.

    Attributes:
        network: function-preserving copy whose hidden activations span 0…255; what stays in float32 reads it.
        items: how the item part of x becomes bytes.
        layers: integer layers of each expert and latent network that sees items, and of gates and the wide layer if
            they do.
        request_reach: the largest number of the request part of x that is told from larger ones.
        means: mean input of each layer [E, K] over the calibration rows, of one that reads x in item steps.
    """

    network: Network
    items: ItemColumns
    layers: dict[nn.Module, tuple[IntegerLayer, ...]]
    means: dict[nn.Module, list[Floats]]
    request_reach: float


def quantise(network: Network, codes: Tensor, values: Tensor) -> Quantised:
    """Return a network in integers, calibrated on encoded rows.

    Raises:
        PrecisionRefused: the network has experts or a latent network without layers.
    """
    maxima = _maxima(network, codes, values)
    level = equalise(network, maxima)
    items = item_columns(network.inputs, values)
    request_width = network.inputs.parts[0].width
    means = _mean_inputs(level, codes, values, items)
    layers: dict[nn.Module, tuple[IntegerLayer, ...]] = {}
    for mlp, reads_x in networks_on_items(level):
        weights, biases = _arrays(mlp.weights), [bias[:, 0] for bias in _arrays(mlp.biases)]
        made = []
        for index, (weight, bias, mean) in enumerate(zip(weights, biases, means[mlp], strict=True)):
            on_x = reads_x and index == 0
            made.append(_on_x(weight, bias, mean, items, request_width) if on_x else integer_layer(weight, bias, mean))
        layers[mlp] = tuple(made)
    for linear in linears_on_items(level).values():
        weight_KH, bias_H = as_one_layer(linear)
        mean = means[networks_on_items(level)[0][0]][0]
        layers[linear] = (_on_x(weight_KH[None], bias_H[None], mean[:1], items, request_width),)
    return Quantised(level, items, layers, means, _request_reach(network, values))


def _request_reach(network: Network, values: Tensor) -> float:
    """Return the largest entry of the tables, or twice the largest standardised value of the rows."""
    of_tables = [float(table.detach().abs().amax()) for table in network.inputs.tables.values() if table.numel()]
    of_values = values[:, : network.inputs.parts[0].values_end].abs()
    return max([*of_tables, 2 * float(of_values.amax()) if of_values.numel() else 0.0, 1e-6])


def equalise(network: Network, maxima: dict[str, list[Tensor]]) -> Network:
    """Return an equal network, embedding tables shared, whose activations of those maxima span 0…255."""
    level = copy_without_tables(network)
    names = {module: name for name, module in level.named_modules()}
    for mlp, _ in networks_on_items(level):
        scales = [_channel_scale(maximum) for maximum in maxima[names[mlp]]]
        if outputs_are_mixed(level, mlp):  # one unit per channel for all of them
            scales[-1] = scales[-1].amax(0, keepdim=True).expand_as(scales[-1])
        _rescale(mlp, scales)
        with torch.no_grad():
            for reader in readers(level, mlp):  # [H, *], or [one each or for all, H, *]
                unit = scales[-1].unsqueeze(2) if len(scales[-1]) == len(reader) else scales[-1][:1].unsqueeze(2)
                reader.mul_(unit[0] if reader.dim() == 2 else unit)
    return level


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

    hooks = [mlp.register_forward_pre_hook(look) for mlp, _ in networks_on_items(network)]
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


def _mean_inputs(network: Network, codes: Tensor, values: Tensor, items: ItemColumns) -> dict[nn.Module, list[Floats]]:
    """Return the mean input of each layer [E, K] over the rows, of one that reads x in item steps."""
    request_width = network.inputs.parts[0].width
    sums: dict[nn.Module, list[Tensor]] = {}

    def look(mlp: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(mlp, BatchedMLP)
        x = inputs[0]
        first = items.steps(x[:, request_width:]).expand(len(mlp.weights[0]), -1, -1) if x.dim() == 2 else x
        seen = [first.sum(1), *(hidden.sum(1) for hidden in list(_hidden(mlp, x))[:-1])]
        sums[mlp] = [a + b for a, b in zip(sums[mlp], seen, strict=True)] if mlp in sums else seen

    hooks = [mlp.register_forward_pre_hook(look) for mlp, _ in networks_on_items(network)]
    try:
        with torch.inference_mode():
            for at in range(0, len(codes), _ROWS_AT_ONCE):
                network(codes[at : at + _ROWS_AT_ONCE], values[at : at + _ROWS_AT_ONCE])
    finally:
        for hook in hooks:
            hook.remove()
    return {mlp: _arrays([total / len(codes) for total in totals]) for mlp, totals in sums.items()}


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


def integer_layer(weight_EKH: Floats, bias_EH: Floats, mean_EK: Floats) -> IntegerLayer:
    """Return a layer whose inputs are whole numbers, from its weights, and its inputs' mean, per step of theirs."""
    weight, scale, correction = _steps(weight_EKH, mean_EK)
    return IntegerLayer(weight, scale, bias_EH / scale + correction)


def _on_x(weight_EKH: Floats, bias_EH: Floats, mean_EK: Floats, items: ItemColumns, request_width: int) -> IntegerLayer:
    folded = weight_EKH[:, request_width + items.source_K] * items.worth_K[:, None]
    weight, scale, correction = _steps(folded, mean_EK)
    request, step, _ = _steps(weight_EKH[:, :request_width], None)
    bias = bias_EH / scale + correction
    halves = tuple(RequestHalf(*half) for half in zip(request, step / scale, bias, strict=True))
    return IntegerLayer(weight, scale, bias, halves)


def _steps(weight_EKH: Floats, mean_EK: Floats | None) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Return int8 weights, the worth of one step per output channel, and what rounding takes from its mean [E, H].

    Inputs are not centred (ReLU), so rounded weights move a channel's mean; the bias gives it back (Nagel et
    al., 2019, "Data-free quantization through weight equalization and bias correction", §4.2).
    """
    scale = steps_of(weight_EKH)
    exact = weight_EKH / scale[:, None]
    whole = np.rint(exact)
    taken = np.zeros_like(scale) if mean_EK is None else (mean_EK[:, None] @ (exact - whole))[:, 0]
    return whole.astype(np.int8), scale, taken


def steps_of(weight_EKH: Floats) -> Floats:
    """Return the worth of one step of each output channel's weights [E, H].

    The largest weight has 127 steps at most, and inputs 2k and 2k + 1 together no more than `PAIR_STEPS` to either
    side; weights of opposite signs take from each other and need no such care.
    """
    networks, inputs, outputs = weight_EKH.shape
    even = np.zeros((networks, inputs + inputs % 2, outputs), dtype=np.float32)
    even[:, :inputs] = weight_EKH
    pairs = even.reshape(networks, -1, 2, outputs)
    either_side = [np.maximum(side * pairs, 0).sum(axis=2).max(axis=1, initial=0) for side in (1, -1)]
    reach = np.maximum(np.abs(even).max(axis=1, initial=0) / WEIGHT_STEPS, np.maximum(*either_side) / PAIR_STEPS)
    return np.where(reach > 0, reach, 1 / WEIGHT_STEPS).astype(np.float32)


def _arrays(tensors: Any) -> list[Floats]:
    return [np.asarray(tensor.detach().numpy(), dtype=np.float32) for tensor in tensors]
