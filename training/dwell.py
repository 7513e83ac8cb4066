"""Dwell of prepared rows: where training starts, and how well a network foretells it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from training.batches import gather
from training.dataset import Prepared, Split
from training.errors import ConfigInvalid
from training.models.heads import LatentLogits
from training.models.network import Network
from training.predict import ROWS_AT_ONCE
from training.run import DwellScale

_ROWS_AT_ONCE = 1_000_000


def dwell_scale(data: Prepared) -> DwellScale:
    """Return mean and deviation of log(1 + seconds) over the training rows whose dwell is known.

    Raises:
        ConfigInvalid: the data have no dwell, or no training row has one.
    """
    dwell = data.split("train").dwell
    if dwell is None:
        expected = "data prepared with a schema that names dwell"
        raise ConfigInvalid("model.dwell", found=f"no dwell in {data.folder}", expected=expected)
    seen, total, squares = 0, 0.0, 0.0
    for start in range(0, len(dwell), _ROWS_AT_ONCE):
        piece = np.log1p(np.asarray(dwell[start : start + _ROWS_AT_ONCE], dtype=np.float64))
        piece = piece[~np.isnan(piece)]
        seen, total, squares = seen + len(piece), total + float(piece.sum()), squares + float(piece @ piece)
    if not seen:
        raise ConfigInvalid("model.dwell", found="no training row with a dwell", expected="some")
    mean = total / seen
    return DwellScale(mean=mean, deviation=math.sqrt(max(0.0, squares / seen - mean**2)))


def dwell_report(network: Network, split: Split, scale: DwellScale) -> dict[str, Any] | None:
    """Return how a network with a dwell tower foretells the dwell of a split; None without any.

    `log_likelihood` is the mean over rows of log p(log(1 + seconds) | x), states summed over; `of_one_normal` that of
    the training rows' mean and deviation alone. `seconds_up` and `seconds_not_up` are geometric means of 1 + seconds,
    less 1, over rows weighted by the state's probability.
    """
    if split.dwell is None:
        return None
    seen, likelihood, weights, sums, one = 0, 0.0, np.zeros(2), np.zeros(2), 0.0
    deviation = max(scale.deviation, 1e-9)
    with torch.inference_mode():
        for start in range(0, split.rows, ROWS_AT_ONCE):
            batch = gather(split, slice(start, start + ROWS_AT_ONCE), [])
            logits = network(batch.codes_BC, batch.values_BV)
            assert isinstance(logits, LatentLogits) and logits.dwell is not None and batch.log_seconds_B is not None
            log_state_B2 = torch.stack([logsigmoid(logits.h_B), logsigmoid(-logits.h_B)], dim=1).double()
            weights += log_state_B2.exp().sum(0).numpy()
            sums += (log_state_B2.exp() * logits.dwell.mu_B2).sum(0).numpy()
            known_B = ~torch.isnan(batch.log_seconds_B)
            seen += int(known_B.sum())
            row_B = torch.logsumexp(log_state_B2 + logits.dwell.log_density(batch.log_seconds_B), dim=1)
            likelihood += float(row_B[known_B].sum())
            z_B = (batch.log_seconds_B[known_B].double() - scale.mean) / deviation
            one -= float((0.5 * z_B**2 + math.log(deviation) + 0.5 * math.log(2 * math.pi)).sum())
    if not seen:
        return None
    seconds = np.expm1(sums / weights)
    return {
        "rows": seen,
        "log_likelihood": likelihood / seen,
        "of_one_normal": one / seen,
        "seconds_up": float(seconds[0]),
        "seconds_not_up": float(seconds[1]),
    }
