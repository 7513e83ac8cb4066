"""Dwell: how long an impression was looked at, a continuous emission of the latent state beside the tasks.

log(1 + seconds) is Normal(mu₁(x), s₁) given UP and Normal(mu₀(x), s₀) given ¬UP. It enters the joint likelihood and is
measured; nothing that is served depends on it.
Legend: B batch, K input width, 2 states: UP, ¬UP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.models.config import ModelConfig
from training.models.layers import BatchedMLP, last_product, linear_weight

LOG_DEVIATIONS = (math.log(0.05), math.log(5.0))
"""Bounds of log s: a deviation near 0 makes likelihoods without limit of a few equal stays."""


@dataclass(frozen=True)
class DwellNormals:
    """Both states' normal distributions of log(1 + seconds): means mu [B, 2], logarithms of deviations [2]."""

    mu_B2: Tensor
    log_s_2: Tensor

    def log_density(self, log_seconds_B: Tensor) -> Tensor:
        """Return the logarithm of both densities [B, 2]; 0, so that it says nothing, where the stay is NaN."""
        seen_B1 = ~torch.isnan(log_seconds_B).unsqueeze(1)
        y_B1 = torch.nan_to_num(log_seconds_B).unsqueeze(1)
        z_B2 = (y_B1 - self.mu_B2) * torch.exp(-self.log_s_2)
        density_B2 = -0.5 * z_B2**2 - self.log_s_2 - 0.5 * math.log(2 * math.pi)
        return torch.where(seen_B1, density_B2, 0.0)


class DwellTower(nn.Module):
    """Means from a small network on x, deviations the same for all rows."""

    def __init__(self, config: ModelConfig, inputs: int) -> None:
        super().__init__()
        self.tower = BatchedMLP(1, inputs, config.tower_hidden)
        self.weight = nn.Parameter(linear_weight(1, self.tower.outputs, 2)[0] * 0.1)  # columns: UP, ¬UP
        self.bias = nn.Parameter(torch.zeros(2))
        self.place_2 = nn.Parameter(torch.zeros(2))  # of log s between its bounds, in logits

    def forward(self, x_BK: Tensor) -> DwellNormals:
        """Return the two distributions of each row."""
        low, high = LOG_DEVIATIONS
        mu_B2 = last_product(self.tower(x_BK)[0], self.weight) + self.bias
        return DwellNormals(mu_B2, low + (high - low) * torch.sigmoid(self.place_2))

    def start_at(self, mean: float, deviation: float) -> None:
        """Set both states' mean and deviation to those of the training rows' log(1 + seconds)."""
        low, high = LOG_DEVIATIONS
        share = min(0.99, max(0.01, (math.log(max(deviation, 1e-9)) - low) / (high - low)))
        with torch.no_grad():
            self.bias.fill_(mean)
            self.place_2.fill_(math.log(share / (1 - share)))
