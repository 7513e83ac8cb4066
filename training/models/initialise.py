"""Base-rate initialisation: every P(task) starts at its share of positives in the training rows.

Worth more at short budgets than any choice of architecture, so every model gets it, baselines too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import InitialisationImpossible
from training.models.heads import LatentHead
from training.models.network import Network
from training.models.structure import NO_PARENT, TaskStructure, unrelated

Rates = NDArray[np.float64]

_RATE_LIMIT = 1e-6


def initialise(network: Network, base_rates_T: NDArray[np.float64], tasks: tuple[str, ...]) -> None:
    """Set α = k · base rate (Eq. 7), the latent bias and, if the config asks for it, the tasks' biases.

    With π₀ = `prior_up`: h₀ = logit π₀, g₀ = 0 and a₀ = (base − (1 − π₀)·k·base/2) / π₀, so that Eq. 1
    gives the base rate. A task within another starts at its rate given that one; for a mirrored task a and b
    change places.

    Raises:
        InitialisationImpossible: a₀ would not lie below 1, for the named task and smallest possible π₀.
    """
    config = network.config
    structure = network.structure or unrelated(len(tasks))
    rates = np.clip(base_rates_T, _RATE_LIMIT, 1 - _RATE_LIMIT)
    head = network.head
    if not isinstance(head, LatentHead):
        if config.base_rate_init:
            _set(head.bias, _logit(np.minimum(_given_parents(rates, structure), 1 - _RATE_LIMIT)))
        return
    alpha = config.alpha_k * rates
    _set(head.alpha, alpha)
    _set(head.latent_bias, _logit(np.array([config.prior_up])))
    if not config.base_rate_init:
        return
    a, b = _free_sides(rates, alpha, config.prior_up, structure)
    mirrored = np.array(structure.mirrored)
    free = np.where(mirrored, b, _given_parents(a, structure))
    worst = int(np.argmax(free))
    if free[worst] >= 1:
        raise _impossible(tasks[worst], rates[worst], alpha[worst], config.prior_up, plain=network.structure is None)
    _set(head.bias_f, np.where(mirrored, 0.0, _logit(free)))
    _set(head.bias_g, np.where(mirrored, _logit(free), 0.0))


def _free_sides(rates_T: Rates, alpha_T: Rates, prior_up: float, structure: TaskStructure) -> tuple[Rates, Rates]:
    """Return a_t and b_t with the bounded one in the middle of its bound and the other one giving the base rate."""
    a, b = alpha_T / 2, alpha_T / 2
    for task in structure.order:
        if (parent := structure.parents[task]) != NO_PARENT:
            b[task] = b[parent] * alpha_T[task] / alpha_T[parent] / 2
    mirrored = np.array(structure.mirrored)
    free_a = (rates_T - (1 - prior_up) * b) / prior_up
    free_b = (rates_T - prior_up * a) / (1 - prior_up)
    return np.where(mirrored, a, free_a), np.where(mirrored, free_b, b)


def _given_parents(p_T: Rates, structure: TaskStructure) -> Rates:
    """Return each task's probability given that its parent happened."""
    return np.array([p if up == NO_PARENT else p / p_T[up] for p, up in zip(p_T, structure.parents, strict=True)])


def _impossible(task: str, rate: float, alpha: float, prior_up: float, *, plain: bool) -> InitialisationImpossible:
    needed = (rate - alpha / 2) / (1 - alpha / 2)
    return InitialisationImpossible(
        f"prior_up for task {task!r} of base rate {rate:.4f}",
        found=prior_up,
        expected=f"more than {needed:.4f}" if plain else "one at which a and b lie below 1",
    )


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))


def _set(tensor: torch.Tensor, values: NDArray[np.float64]) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(values))
