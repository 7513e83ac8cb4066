"""Optimisers of a network, their learning rate along the run, and their state as named tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.models.network import Network


def new_optimizers(network: Network, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return Adam for everything, or, with sparse tables, one for the tables' touched rows and one for the rest."""
    tables = list(network.inputs.tables.parameters())
    dense = [p for name, p in network.named_parameters() if not name.startswith("inputs.tables")]
    rest = {"params": dense, "weight_decay": config.weight_decay}
    if config.sparse_tables and tables:
        sparse = torch.optim.SparseAdam(tables, lr=config.learning_rate)
        return [sparse, torch.optim.AdamW([rest], lr=config.learning_rate, fused=True)]
    groups = [{"params": tables, "weight_decay": config.embedding_decay}, rest]
    return [torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)]


def learning_rate(config: TrainingConfig, step: int, steps_at_most: int) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine down to a hundredth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps_at_most - config.warmup_steps)
    return config.learning_rate * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of optimisers by `number.parameter.name`."""
    return {
        f"{number}.{index}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Take up the state that `optimizer_tensors` returned."""
    for number, optimizer in enumerate(optimizers):
        counts_in_ints = isinstance(optimizer, torch.optim.SparseAdam)  # its steps as tensors would be float32
        states: dict[int, dict[str, Tensor | int]] = {}
        for place, value in tensors.items():
            of, index, name = place.split(".")
            if int(of) == number:
                is_count = counts_in_ints and name == "step"
                states.setdefault(int(index), {})[name] = int(value) if is_count else value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
