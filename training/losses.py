"""Losses of a batch, each a mean over its rows.

Legend: B batch, T tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from training.models.heads import LatentLogits, Logits, TaskLogits

LossName = Literal["marginal", "joint", "mixed"]


def cross_entropy(logits: Logits, labels_BT: Tensor) -> Tensor:
    """Return each task's mean cross-entropy of P(t) [T]."""
    if isinstance(logits, TaskLogits) and logits.structure is None:
        return binary_cross_entropy_with_logits(logits.z_BT, labels_BT, reduction="none").mean(0)
    log_p, log_not_p = logits.log_p()
    return -(labels_BT * log_p + (1 - labels_BT) * log_not_p).mean(0)


def marginal(logits: Logits, labels_BT: Tensor, task_weights_T: Tensor | None = None) -> Tensor:
    """Return the paper's loss: the sum over tasks of the cross-entropy of P(t), optionally weighted."""
    per_task = cross_entropy(logits, labels_BT)
    return per_task.sum() if task_weights_T is None else (per_task * task_weights_T).sum()


def joint(logits: LatentLogits, labels_BT: Tensor, log_seconds_B: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of all labels of a row as a two-state mixture.

    −log[ u·Π_t Bern(y_t; a_t) + (1 − u)·Π_t Bern(y_t; b_t) ]; it identifies u from three tasks on, which the
    marginal loss does not. Never weighted by task: it would stop being a likelihood. A task within another says
    nothing where that one did not happen. With dwell the density of log(1 + seconds) is one more factor of each
    state's product; a row where that is NaN has none.
    """
    positive, negative = labels_BT, 1 - labels_BT
    possible_BT = None if logits.structure is None else logits.structure.possible(labels_BT)
    if possible_BT is not None:
        positive, negative = positive * possible_BT, negative * possible_BT
    (log_a, log_not_a), (log_b, log_not_b) = logits.log_a(), logits.log_b()
    under_up = (positive * log_a + negative * log_not_a).sum(1)
    under_not_up = (positive * log_b + negative * log_not_b).sum(1)
    if logits.dwell is not None and log_seconds_B is not None:
        density_B2 = logits.dwell.log_density(log_seconds_B)
        under_up, under_not_up = under_up + density_B2[:, 0], under_not_up + density_B2[:, 1]
    log_likelihood = torch.logaddexp(logsigmoid(logits.h_B) + under_up, logsigmoid(-logits.h_B) + under_not_up)
    return -log_likelihood.mean()


def total(
    name: LossName,
    logits: Logits,
    labels_BT: Tensor,
    *,
    task_weights_T: Tensor | None = None,
    joint_share: float = 0.5,
    log_seconds_B: Tensor | None = None,
) -> Tensor:
    """Return the loss by name; a model without the latent state has only the marginal one.

    `mixed` is joint_share · joint + (1 − joint_share) · marginal.
    """
    if name == "marginal" or not isinstance(logits, LatentLogits):
        return marginal(logits, labels_BT, task_weights_T)
    if name == "joint":
        return joint(logits, labels_BT, log_seconds_B)
    likelihood = joint(logits, labels_BT, log_seconds_B)
    return joint_share * likelihood + (1 - joint_share) * marginal(logits, labels_BT, task_weights_T)
