"""Heads: task representations → probabilities, either one per task or coupled by the latent P(UP).

Everything stays in log space until a probability is asked for: the naive products give inf and nan, and
clamping kills gradients in half precision. Equation numbers are those of the DLEN paper.
Legend: B batch, T tasks, H tower width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from training.models.config import ModelConfig
from training.models.dwell import DwellNormals, DwellTower
from training.models.layers import BatchedMLP, column_products, last_product, linear_weight
from training.models.structure import TaskStructure


@dataclass(frozen=True)
class Probabilities:
    """What a model predicts: P(t) [B, T]; with the latent state P(t,UP) [B, T] and P(UP) [B]."""

    p_BT: Tensor
    p_joint_BT: Tensor | None = None
    p_up_B: Tensor | None = None


@dataclass(frozen=True)
class TaskLogits:
    """Output of a model without the latent state: P(t) = sigmoid(z), given its parent where it has one."""

    z_BT: Tensor
    structure: TaskStructure | None = None

    def log_p(self) -> tuple[Tensor, Tensor]:
        """Return log P(t) and log(1 - P(t)), each [B, T]."""
        logs = logsigmoid(self.z_BT), logsigmoid(-self.z_BT)
        return logs if self.structure is None else self.structure.chained(*logs)

    def probabilities(self) -> Probabilities:
        """Return P(t)."""
        if self.structure is None or not self.structure.has_chains:
            return Probabilities(torch.sigmoid(self.z_BT))
        return Probabilities(self.log_p()[0].exp())


@dataclass(frozen=True)
class LatentLogits:
    """Output of a model with the latent state.

    Attributes:
        h_B: u = P(UP) = sigmoid(h).
        f_BT: a_t = P(t|UP) = sigmoid(f) (Eq. 9).
        g_BT: b_t = P(t|¬UP) = alpha · sigmoid(g) (Eq. 10).
        alpha_T: upper bounds of b_t (Eq. 7); of a_t for mirrored tasks.
        structure: relations of the tasks; with a parent, a and b are given that the parent happened.
        dwell: of how long the row is looked at, where the model has it.
    """

    h_B: Tensor
    f_BT: Tensor
    g_BT: Tensor
    alpha_T: Tensor
    structure: TaskStructure | None = None
    dwell: DwellNormals | None = None

    def log_a(self) -> tuple[Tensor, Tensor]:
        """Return log a_t and log(1 - a_t), each [B, T], given the parent."""
        if self.structure is None or not any(self.structure.mirrored):
            return logsigmoid(self.f_BT), logsigmoid(-self.f_BT)
        return _bounded(self.f_BT, self.structure.bounds(self.alpha_T)[0])

    def log_b(self) -> tuple[Tensor, Tensor]:
        """Return log b_t and log(1 - b_t), each [B, T], given the parent."""
        bound_T = self.alpha_T if self.structure is None else self.structure.bounds(self.alpha_T)[1]
        return _bounded(self.g_BT, bound_T)

    def log_p(self) -> tuple[Tensor, Tensor]:
        """Return log P(t) and log(1 - P(t)), each [B, T] (Eq. 1 and 3)."""
        log_u, log_not_u = logsigmoid(self.h_B).unsqueeze(1), logsigmoid(-self.h_B).unsqueeze(1)
        (log_a, log_not_a), (log_b, log_not_b) = self.log_a(), self.log_b()
        if self.structure is not None:
            log_a, log_not_a = self.structure.chained(log_a, log_not_a)
            log_b, log_not_b = self.structure.chained(log_b, log_not_b)
        log_p = torch.logaddexp(log_u + log_a, log_not_u + log_b)
        return log_p, torch.logaddexp(log_u + log_not_a, log_not_u + log_not_b)

    def probabilities(self) -> Probabilities:
        """Return P(t) (Eq. 1), P(t,UP) (Eq. 4) and P(UP)."""
        u = torch.sigmoid(self.h_B).unsqueeze(1)
        if self.structure is not None:
            joint = self.structure.chained(*self.log_a())[0].exp() * u
            b_BT = self.structure.chained(*self.log_b())[0].exp()
            return Probabilities(joint + b_BT * torch.sigmoid(-self.h_B).unsqueeze(1), joint, u.squeeze(1))
        joint = torch.sigmoid(self.f_BT) * u
        marginal = joint + self.alpha_T * torch.sigmoid(self.g_BT) * torch.sigmoid(-self.h_B).unsqueeze(1)
        return Probabilities(marginal, joint, u.squeeze(1))


def _bounded(x_BT: Tensor, bound_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 - p) of p = bound·sigmoid(x); 1 - p = (1 - bound)·sigmoid(x) + sigmoid(-x)."""
    log_x = logsigmoid(x_BT)
    return torch.log(bound_T) + log_x, torch.logaddexp(torch.log1p(-bound_T) + log_x, logsigmoid(-x_BT))


Logits = TaskLogits | LatentLogits


class Wide(nn.Module):
    """The wide half of "Wide & Deep Learning" (Cheng et al., 2016): x [B, K] → L logits per task [L, B, T], linearly.

    It starts at zero, so that it changes nothing of how a model starts.
    """

    def __init__(self, inputs: int, tasks: int, logits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(logits, inputs, tasks))

    def forward(self, x_BK: Tensor) -> Tensor:
        """Return [L, B, T], as one product."""
        logits, inputs, tasks = self.weight.shape
        side_by_side = last_product(x_BK, self.weight.transpose(0, 1).reshape(inputs, logits * tasks))
        return side_by_side.view(-1, logits, tasks).transpose(0, 1)


class IndependentHead(nn.Module):
    """One logit per task from its tower."""

    LOGITS = 1

    def __init__(
        self, config: ModelConfig, inputs: int, representation: int, tasks: int, structure: TaskStructure | None = None
    ) -> None:
        super().__init__()
        self.structure = structure
        del inputs
        self.towers = BatchedMLP(tasks, representation, config.tower_hidden)
        self.weight = nn.Parameter(linear_weight(tasks, self.towers.outputs, 1) * 0.1)
        self.bias = nn.Parameter(torch.zeros(tasks))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BK: Tensor, representations_TBH: Tensor, wide_LBT: Tensor | None = None) -> TaskLogits:
        """Return the tasks' logits, `wide_LBT` added."""
        del x_BK
        towers = self.towers(self.dropout(representations_TBH))
        z_BT = self._product(towers).T + self.bias
        return TaskLogits(z_BT if wide_LBT is None else z_BT + wide_LBT[0], self.structure)

    def _product(self, towers_TBH: Tensor) -> Tensor:
        """Return towers @ weight [T, B]."""
        if self.training:
            return column_products(towers_TBH.to(self.weight.dtype), self.weight.squeeze(2))
        return last_product(towers_TBH, self.weight).squeeze(2)


class LatentHead(nn.Module):
    """The DLEN head: per task two logits from its tower, and P(UP) from a network of its own (Fig. 2)."""

    LOGITS = 2  # f, g
    alpha: Tensor

    def __init__(
        self, config: ModelConfig, inputs: int, representation: int, tasks: int, structure: TaskStructure | None = None
    ) -> None:
        super().__init__()
        self.structure = structure
        self.towers = BatchedMLP(tasks, representation, config.tower_hidden)
        self.weight = nn.Parameter(linear_weight(tasks, self.towers.outputs, 2) * 0.1)  # columns: f, g
        self.bias_f = nn.Parameter(torch.zeros(tasks))
        self.bias_g = nn.Parameter(torch.zeros(tasks))
        self.latent = BatchedMLP(1, inputs, config.latent_hidden)
        self.latent_weight = nn.Parameter(linear_weight(1, self.latent.outputs, 1)[0] * 0.1)
        self.latent_bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("alpha", torch.full((tasks,), 0.5))
        self.dwell = DwellTower(config, inputs) if config.dwell else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BK: Tensor,
        representations_TBH: Tensor,
        wide_LBT: Tensor | None = None,
        latent_1BH: Tensor | None = None,
    ) -> LatentLogits:
        """Return the logits of P(t|UP) and P(t|¬UP), `wide_LBT` added, and of P(UP).

        `latent_1BH` is what the latent network gives of x, where it has read it already.
        """
        towers = self.towers(self.dropout(representations_TBH))
        fg_TB2 = last_product(towers, self.weight)
        latent = self.dropout((self.latent(x_BK) if latent_1BH is None else latent_1BH)[0])
        h_B = (last_product(latent, self.latent_weight) + self.latent_bias).squeeze(1)
        f_BT, g_BT = fg_TB2[:, :, 0].T + self.bias_f, fg_TB2[:, :, 1].T + self.bias_g
        if wide_LBT is not None:
            f_BT, g_BT = f_BT + wide_LBT[0], g_BT + wide_LBT[1]
        dwell = None if self.dwell is None else self.dwell(x_BK)
        return LatentLogits(h_B, f_BT, g_BT, self.alpha, self.structure, dwell)
