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

_RATE_LIMIT = 1e-6


def initialise(network: Network, base_rates_T: NDArray[np.float64], tasks: tuple[str, ...]) -> None:
    """Set α = k · base rate (Eq. 7) and, if the config asks for it, the output biases.

    With π₀ = `prior_up`: h₀ = logit π₀, g₀ = 0 and a₀ = (base − (1 − π₀)·k·base/2) / π₀, so that Eq. 1
    gives the base rate.

    Raises:
        InitialisationImpossible: a₀ would not lie below 1, for the named task and smallest possible π₀.
    """
    config = network.config
    rates = np.clip(base_rates_T, _RATE_LIMIT, 1 - _RATE_LIMIT)
    head = network.head
    if not isinstance(head, LatentHead):
        if config.base_rate_init:
            _set(head.bias, _logit(rates))
        return
    alpha = config.alpha_k * rates
    _set(head.alpha, alpha)
    if not config.base_rate_init:
        return
    a = (rates - (1 - config.prior_up) * alpha / 2) / config.prior_up
    worst = int(np.argmax(a))
    if a[worst] >= 1:
        needed = (rates[worst] - alpha[worst] / 2) / (1 - alpha[worst] / 2)
        raise InitialisationImpossible(
            f"prior_up for task {tasks[worst]!r} of base rate {rates[worst]:.4f}",
            found=config.prior_up,
            expected=f"more than {needed:.4f}",
        )
    _set(head.bias_f, _logit(a))
    _set(head.bias_g, np.zeros_like(a))
    _set(head.latent_bias, _logit(np.array([config.prior_up])))


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))


def _set(tensor: torch.Tensor, values: NDArray[np.float64]) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(values))
