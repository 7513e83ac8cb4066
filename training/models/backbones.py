"""Backbones: input x [B, K] → one representation per task [T, B, H].

Shared-bottom (Caruana, 1997), MMOE (Ma et al., KDD 2018), PLE/CGC (Tang et al., RecSys 2020). Each names its `readers`,
the networks that read x itself, and goes on from what they give, so that others can read x in the same product.
Legend: B batch, K input width, E experts, T tasks, H width of an expert's last layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.config import ModelConfig
from training.models.layers import BatchedMLP, Layer, joint_layers, linear_weight


class Backbone(nn.Module, ABC):
    """What every backbone is.

    Attributes:
        outputs: width H of a representation.
    """

    outputs: int

    @property
    @abstractmethod
    def readers(self) -> list[Reader]:
        """The networks that read x."""

    @abstractmethod
    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return [T, B, H] from what the readers give."""

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return [T, B, H]."""
        return self.after_readers(read(x_BK, self.readers, jointly=self.training and len(self.readers) > 1))


class SharedBottom(Backbone):
    """One MLP whose output every task takes."""

    def __init__(self, config: ModelConfig, inputs: int, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.bottom = BatchedMLP(1, inputs, config.expert_hidden)
        self.outputs = self.bottom.outputs

    @property
    def readers(self) -> list[Reader]:
        """The networks that read x."""
        return [self.bottom]

    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return [T, B, H], the same for every task, from what the readers give."""
        (bottom,) = found
        return bottom.expand(self.tasks, -1, -1)


class SeparateBottoms(Backbone):
    """One MLP per task on the shared embeddings, as in ESMM (Ma et al., SIGIR 2018)."""

    def __init__(self, config: ModelConfig, inputs: int, tasks: int) -> None:
        super().__init__()
        self.bottoms = BatchedMLP(tasks, inputs, config.expert_hidden)
        self.outputs = self.bottoms.outputs

    @property
    def readers(self) -> list[Reader]:
        """The networks that read x."""
        return [self.bottoms]

    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return [T, B, H] from what the readers give."""
        (bottoms,) = found
        return bottoms


class Gates(nn.Module):
    """One softmax gate per mixture: x [B, K] → weights [M, B, E] over E experts for M mixtures."""

    def __init__(self, inputs: int, mixtures: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear_weight(mixtures, inputs, experts) * 0.1)
        self.bias = nn.Parameter(torch.zeros(mixtures, 1, experts))

    def forward(self, x: Tensor) -> Tensor:
        """Return softmax weights [M, B, E] from x [B, K] or [M, B, K]."""
        return self.after_first(self.first.of(x))

    @property
    def first(self) -> Layer:
        """The product that the softmax is taken of."""
        return Layer(self.weight, self.bias, is_relu=False)

    def after_first(self, logits_MBE: Tensor) -> Tensor:
        """Return the softmax weights [M, B, E].

        Over the few experts of a row, one by one, a softmax takes longer than the experts' products: it runs over
        [M, E, B], whose rows lie side by side, and ends in the layout [B, M, E] that `mix` takes.
        """
        logits_MEB = logits_MBE.transpose(1, 2).contiguous()
        return torch.softmax(logits_MEB, dim=1).permute(2, 0, 1).contiguous().transpose(0, 1)


class MMOE(Backbone):
    """Experts on x, mixed per task by a softmax gate on x."""

    def __init__(self, config: ModelConfig, inputs: int, tasks: int) -> None:
        super().__init__()
        self.experts = BatchedMLP(config.experts, inputs, config.expert_hidden)
        self.gates = Gates(inputs, tasks, config.experts)
        self.outputs = self.experts.outputs

    @property
    def readers(self) -> list[Reader]:
        """The networks that read x."""
        return [self.gates, self.experts]

    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return [T, B, H] from what the readers give."""
        gates_MBE, experts_EBH = found
        return mix(gates_MBE, experts_EBH)


class PLELevel(nn.Module):
    """One extraction level: shared experts and each task's own; a task mixes the shared ones and its own.

    Experts are ordered [shared | task 0's | task 1's …]; representations [T, …] plus one shared, last.
    """

    def __init__(self, config: ModelConfig, inputs: int, tasks: int, *, last: bool) -> None:
        super().__init__()
        self.tasks, self.shared, self.own, self.last = tasks, config.shared_experts, config.task_experts, last
        self.experts = BatchedMLP(self.shared + tasks * self.own, inputs, config.expert_hidden)
        self.gates = Gates(inputs, tasks, self.shared + self.own)
        self.shared_gate = None if last else Gates(inputs, 1, self.shared + tasks * self.own)
        self.outputs = self.experts.outputs

    @property
    def readers(self) -> list[Reader]:
        """The networks that read x [B, K], in the first level."""
        return [self.gates, self.experts, *([] if self.shared_gate is None else [self.shared_gate])]

    def forward(self, x_TBK: Tensor) -> Tensor:
        """Return [T, B, H] (last level) or [T + 1, B, H] from [T + 1, B, K], in a level that is not the first."""
        shared_weights = [] if self.shared_gate is None else [self.shared_gate(x_TBK[-1:])]
        return self.after_readers([self.gates(x_TBK[:-1]), self.experts(self._spread(x_TBK)), *shared_weights])

    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return the same from what gates and experts give."""
        weights, experts_EBH, *shared_weights = found
        shared, own = experts_EBH[: self.shared], experts_EBH[self.shared :]
        own = own.view(self.tasks, self.own, *own.shape[1:])
        mixed = torch.stack([mix(weights[t : t + 1], torch.cat([shared, own[t]]))[0] for t in range(self.tasks)])
        return torch.cat([mixed, *(mix(each, experts_EBH) for each in shared_weights)])

    def _spread(self, x: Tensor) -> Tensor:
        """Return each expert's input [E, B, K]: the shared representation or its task's."""
        shared = x[-1:].expand(self.shared, -1, -1)
        return torch.cat([shared, x[:-1].repeat_interleave(self.own, dim=0)])


class PLE(Backbone):
    """Progressive layered extraction; one level is CGC, the paper's setting."""

    def __init__(self, config: ModelConfig, inputs: int, tasks: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(config.levels):
            self.levels.append(PLELevel(config, inputs, tasks, last=level == config.levels - 1))
            inputs = config.expert_hidden[-1]
        self.outputs = inputs

    @property
    def readers(self) -> list[Reader]:
        """The networks that read x."""
        return self._first.readers

    def after_readers(self, found: Sequence[Tensor]) -> Tensor:
        """Return [T, B, H] from what the readers give."""
        x = self._first.after_readers(found)
        for level in self.levels[1:]:
            x = level(x)
        return x

    @property
    def _first(self) -> PLELevel:
        level = self.levels[0]
        assert isinstance(level, PLELevel)
        return level


Reader = Gates | BatchedMLP


def read(x_BK: Tensor, readers: Sequence[Reader], *, jointly: bool) -> list[Tensor]:
    """Return what each reader gives of x; jointly, their first layers are one product, which is faster to train."""
    if not jointly:
        return [reader(x_BK) for reader in readers]
    firsts = joint_layers(x_BK, [reader.first for reader in readers])
    return [reader.after_first(first) for reader, first in zip(readers, firsts, strict=True)]


def mix(weights_MBE: Tensor, experts_EBH: Tensor) -> Tensor:
    """Return [M, B, H]: for each mixture, the experts summed under its weights."""
    return torch.bmm(weights_MBE.permute(1, 0, 2), experts_EBH.transpose(0, 1)).transpose(0, 1)


BACKBONES: dict[str, type[Backbone]] = {
    "shared-bottom": SharedBottom,
    "mmoe": MMOE,
    "ple": PLE,
    "esmm": SeparateBottoms,
}
