"""The network as torch.onnx.export writes it, which is what serving graphs are measured against.

Two ways: the training network as it is (experts as one batched product), and with every expert, tower and
gate a Linear of its own, as most would write it; ONNX Runtime runs the second one faster.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from model_export.errors import ExportError
from model_export.quantise import copy_without_tables
from training.models.backbones import Gates
from training.models.layers import BatchedMLP
from training.models.network import Network

CODES, VALUES = "codes", "values"


def write_plain_export(network: Network, path: Path, *, codes: int, values: int) -> None:
    """Write torch's own export: whole rows `codes` int32 [N, C] and `values` float32 [N, V] → probabilities.

    Raises:
        ExportError: onnxscript, which torch exports with, is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ExportError("torch.onnx.export", found="no onnxscript", expected="pip install onnxscript") from exc
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    inputs = {CODES: torch.zeros(8, codes, dtype=torch.int32), VALUES: torch.zeros(8, values)}
    with _quiet():
        torch.onnx.export(
            _Rows(network).eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=True,
            verbose=False,
            dynamic_shapes={name: {0: rows} for name in inputs},
            input_names=list(inputs),
            external_data=False,
        )


def unrolled(network: Network) -> Network:
    """Return an equal network in which every expert, tower and gate is a Linear of its own."""
    twin = copy_without_tables(network)
    for name, module in network.named_modules():
        if isinstance(module, BatchedMLP | Gates):
            parent, _, attribute = name.rpartition(".")
            setattr(
                twin.get_submodule(parent), attribute, (_MLPs if isinstance(module, BatchedMLP) else _Gates)(module)
            )
    return twin


class _Rows(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        out = self.network(codes, values).probabilities()
        return tuple(x for x in (out.p_BT, out.p_joint_BT, out.p_up_B) if x is not None)


class _MLPs(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        assert isinstance(mlp, BatchedMLP)
        self.networks = nn.ModuleList()
        for e in range(len(mlp.weights[0])):
            layers: list[nn.Module] = []
            for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
                layers += [_linear(weight[e], bias[e, 0]), nn.ReLU()]
            self.networks.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([f(x if x.dim() == 2 else x[e]) for e, f in enumerate(self.networks)])


class _Gates(nn.Module):
    def __init__(self, gates: nn.Module) -> None:
        super().__init__()
        assert isinstance(gates, Gates)
        pairs = zip(gates.weight, gates.bias, strict=True)
        self.gates = nn.ModuleList([_linear(weight, bias[0]) for weight, bias in pairs])

    def forward(self, x: Tensor) -> Tensor:
        logits = [gate(x if x.dim() == 2 else x[m]) for m, gate in enumerate(self.gates)]
        return torch.stack([torch.softmax(z, dim=1) for z in logits])


def _linear(weight_KH: Tensor, bias_H: Tensor) -> nn.Linear:
    linear = nn.Linear(*weight_KH.shape)
    with torch.no_grad():
        linear.weight.copy_(weight_KH.T)
        linear.bias.copy_(bias_H)
    return linear


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from telling what does not matter here (no torchvision, pytree deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
