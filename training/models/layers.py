"""Linear layers of several networks side by side, as batched products or as one product of an input that they share.

Legend: B batch, K input width, E networks side by side, H hidden width, T tasks, W columns of a joint product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_COLUMNS = 16


class Layer(NamedTuple):
    """E linear layers of one shape.

    Attributes:
        weight: [E, K, H].
        bias: [E, 1, H].
        is_relu: whether max(0, ·) follows.
    """

    weight: Tensor
    bias: Tensor
    is_relu: bool

    def of(self, x: Tensor) -> Tensor:
        """Return [E, B, H] from x [B, K] (shared by all) or [E, B, K] (one each)."""
        product = side_by_side(x, self.weight, self.bias)
        return torch.relu(product) if self.is_relu else product


class BatchedMLP(nn.Module):
    """E MLPs of one shape, each layer one batched product; ReLU after every layer."""

    def __init__(self, networks: int, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for outputs in hidden:
            self.weights.append(nn.Parameter(linear_weight(networks, inputs, outputs)))
            self.biases.append(nn.Parameter(torch.zeros(networks, 1, outputs)))
            inputs = outputs
        self.outputs = inputs

    @property
    def first(self) -> Layer:
        """The first layer."""
        return Layer(self.weights[0], self.biases[0], is_relu=True)

    def after_first(self, x_EBH: Tensor) -> Tensor:
        """Return [E, B, H] from what the first layer gives."""
        x = x_EBH
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            x = side_by_side(x, weight, bias).relu_()
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return [E, B, H] from x [B, K] (shared by all) or [E, B, K] (one each)."""
        return self.after_first(self.first.of(x))


def side_by_side(x: Tensor, weight_EKH: Tensor, bias_E1H: Tensor) -> Tensor:
    """Return E linear layers [E, B, H] of x [B, K] (shared by all) or [E, B, K] (one each).

    Layers that share x are one product of width E·H: as E products, their gradient of x would be E times as large.
    """
    if x.dim() == 3:
        return torch.baddbmm(bias_E1H, x, weight_EKH)
    networks, inputs, outputs = weight_EKH.shape
    flat = torch.addmm(bias_E1H.flatten(), x, weight_EKH.transpose(0, 1).reshape(inputs, networks * outputs))
    return flat.view(-1, networks, outputs).transpose(0, 1)


def joint_layers(x_BK: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Return what several groups of layers give of one x, [E, B, H] each, all of them by one product.

    A product of few columns takes nearly as long as one of many: beside 192 columns of experts the 15 of gates took
    4 of 29 ms of a training step, and as columns of the same product half a millisecond. Under autocast x and its
    gradient are also converted once, not for each layer.
    """
    device = x_BK.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BK.dtype
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    parts: tuple[Tensor, ...] = _JointLayers.apply(x_BK, dtype, [layer.is_relu for layer in layers], *tensors)  # type: ignore[no-untyped-call]
    return list(parts)


class _JointLayers(torch.autograd.Function):
    """Layers of one x, given as weight [E, K, H], bias [E, 1, H] and so on, as one product of W columns.

    Columns of nothing fill it up to a multiple of `_COLUMNS`, for which kernels are made. By hand, because autograd
    would copy what comes back twice more: behind each ReLU, and to put it together.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BK: Tensor, dtype: torch.dtype, is_relu: Sequence[bool], *layers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return each group's outputs, [E, B, H], of products in a dtype."""
        shapes = [weight.shape for weight in layers[::2]]
        width = -(-sum(shape[0] * shape[2] for shape in shapes) // _COLUMNS) * _COLUMNS
        ctx.x_dtype, x_BK = x_BK.dtype, x_BK.to(dtype)
        weight_KW, bias_W = x_BK.new_zeros(x_BK.shape[1], width), x_BK.new_zeros(width)
        for into, weight in zip(_columns_of(weight_KW, shapes), layers[::2], strict=True):
            into.copy_(weight)
        for into, bias in zip(_columns_of(bias_W[None], shapes), layers[1::2], strict=True):
            into.copy_(bias)
        ctx.shapes, ctx.is_relu = shapes, is_relu
        output_BW = torch.addmm(bias_W, x_BK, weight_KW)
        outputs = _columns_of(output_BW, shapes)
        for output, relu in zip(outputs, is_relu, strict=True):
            if relu:
                output.clamp_(min=0)
        ctx.save_for_backward(x_BK, weight_KW, output_BW)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of each weight and bias."""
        x_BK, weight_KW, output_BW = ctx.saved_tensors
        gradient_BW = x_BK.new_empty(len(x_BK), weight_KW.shape[1])
        gradient_BW[:, -_COLUMNS:] = 0
        into, outputs = _columns_of(gradient_BW, ctx.shapes), _columns_of(output_BW, ctx.shapes)
        for of_group, gradient, output, relu in zip(into, gradients, outputs, ctx.is_relu, strict=True):
            if relu:
                torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=of_group)
            else:
                of_group.copy_(gradient)
        x_gradient = (gradient_BW @ weight_KW.t()).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        weights = _columns_of((x_BK.t() @ gradient_BW).to(ctx.x_dtype), ctx.shapes)
        biases = _columns_of(gradient_BW.sum(0, dtype=ctx.x_dtype)[None], ctx.shapes)
        return x_gradient, None, None, *(tensor for layer in zip(weights, biases, strict=True) for tensor in layer)


def _columns_of(wide_RW: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return each group's columns of a matrix, [E, R, H], as views."""
    views, start = [], 0
    for networks, _, outputs in shapes:
        end = start + networks * outputs
        views.append(wide_RW[:, start:end].view(-1, networks, outputs).transpose(0, 1))
        start = end
    return views


def last_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight at the precision of the weight, also under autocast.

    For the products that give logits: rounded to bfloat16 they would have three digits.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return x @ weight
    with torch.autocast(x.device.type, enabled=False):
        return x.to(weight.dtype) @ weight


def column_products(x_TBH: Tensor, weight_TH: Tensor) -> Tensor:
    """Return x [T, B, H] times w [T, H], [T, B], at full precision also under autocast.

    As batched products of one column they take up to three times as long to train, as sums twice.
    """
    products_TB: Tensor = _ColumnProducts.apply(x_TBH, weight_TH)  # type: ignore[no-untyped-call]
    return products_TB


class _ColumnProducts(torch.autograd.Function):
    """A product of a matrix and a vector for each task, and two more for their gradients."""

    @staticmethod
    def forward(ctx: Any, x_TBH: Tensor, weight_TH: Tensor) -> Tensor:
        """Return [T, B]."""
        ctx.save_for_backward(x_TBH, weight_TH)
        with torch.autocast(x_TBH.device.type, enabled=False):
            return torch.stack([torch.mv(x_BH, weight_H) for x_BH, weight_H in zip(x_TBH, weight_TH, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and w."""
        (gradient_TB,), (x_TBH, weight_TH) = gradients, ctx.saved_tensors
        of_weight = [torch.mv(x_BH.t(), of_B) for x_BH, of_B in zip(x_TBH, gradient_TB, strict=True)]
        return gradient_TB[:, :, None] * weight_TH[:, None], torch.stack(of_weight)


def linear_weight(networks: int, inputs: int, outputs: int) -> Tensor:
    """Return initial weights [E, K, H], uniform within ±sqrt(3 / K) (variance 1 / K)."""
    bound = math.sqrt(3.0 / max(inputs, 1))
    return torch.empty(networks, inputs, outputs).uniform_(-bound, bound)
