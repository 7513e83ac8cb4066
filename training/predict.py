"""Predictions of a network for every row of a split, in file order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.batches import gather
from training.dataset import Split
from training.models.network import Network

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Predictions:
    """float32 arrays: p and p_joint [rows, T], p_up [rows]; the last two None without the latent state."""

    p: NDArray[np.float32]
    p_joint: NDArray[np.float32] | None
    p_up: NDArray[np.float32] | None


def predict(network: Network, split: Split) -> Predictions:
    """Return the network's predictions for all rows of `split`."""
    was_training = network.training
    network.eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, split.rows, ROWS_AT_ONCE):
            batch = gather(split, slice(start, start + ROWS_AT_ONCE), [])
            outputs.append(network(batch.codes_BC, batch.values_BV).probabilities())
    network.train(was_training)
    return Predictions(
        np.concatenate([out.p_BT.numpy() for out in outputs]),
        np.concatenate([out.p_joint_BT.numpy() for out in outputs]) if outputs[0].p_joint_BT is not None else None,
        np.concatenate([out.p_up_B.numpy() for out in outputs]) if outputs[0].p_up_B is not None else None,
    )
