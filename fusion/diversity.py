"""Diversity on item vectors: MMR and DPP, greedy over the head of the order.

Shapes: M candidates in the pool, D vector size. Vectors are scaled to length 1; one of length 0 is like nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.formulas import Floats

Ints = NDArray[np.intp]
_SMALLEST_GAIN = 1e-10


def select_mmr(score_M: Floats, vectors_MD: NDArray[Any], depth: int, relevance: float) -> list[int]:
    """Return `depth` pool places, chosen one by one by relevance·r − (1 − relevance)·(largest cosine to the chosen).

    r is the score scaled to [0, 1] within the pool; ties go to the earlier place. Carbonell & Goldstein, 1998.
    """
    scaled_M = relevance * _scaled(score_M)
    unit_MD = _unit(vectors_MD)
    chosen: list[int] = []
    nearest_M = np.zeros(len(score_M))
    for _ in range(min(depth, len(score_M))):
        value_M = scaled_M - (1 - relevance) * nearest_M
        value_M[chosen] = -np.inf
        best = int(value_M.argmax())
        cosine_M = unit_MD @ unit_MD[best]
        nearest_M = np.maximum(nearest_M, cosine_M) if chosen else cosine_M
        chosen.append(best)
    return chosen


def select_dpp(score_M: Floats, vectors_MD: NDArray[Any], depth: int, relevance: float) -> list[int]:
    """Return up to `depth` pool places that greedily maximise det of L = q_i·q_j·(1 + cosine)/2.

    q = exp(relevance / (2·(1 − relevance))·r), r as for MMR. Chen, Zhang & Zhou, "Fast greedy MAP inference for
    determinantal point process", 2018, Algorithm 1. Ends early when nothing adds to the determinant.
    """
    quality_M = np.exp(relevance / (2 * (1 - relevance)) * _scaled(score_M))
    unit_MD = _unit(vectors_MD)
    gain_M = quality_M**2
    rows = np.zeros((min(depth, len(score_M)), len(score_M)))
    chosen: list[int] = []
    for step in range(len(rows)):
        best = int(gain_M.argmax())
        if gain_M[best] < _SMALLEST_GAIN:
            break
        kernel_M = quality_M[best] * quality_M * (1 + unit_MD @ unit_MD[best]) / 2
        rows[step] = (kernel_M - rows[:step, best] @ rows[:step]) / np.sqrt(gain_M[best])
        gain_M = gain_M - rows[step] ** 2
        chosen.append(best)
        gain_M[chosen] = -np.inf
    return chosen


def _scaled(score_M: Floats) -> Floats:
    low, high = score_M.min(), score_M.max()
    scaled_M: Floats = (score_M - low) / (high - low) if high > low else np.zeros(len(score_M))
    return scaled_M


def _unit(vectors_MD: NDArray[Any]) -> Floats:
    wide_MD = vectors_MD.astype(np.float64)
    length_M = np.sqrt((wide_MD**2).sum(axis=1, keepdims=True))
    unit_MD: Floats = np.divide(wide_MD, length_M, out=np.zeros_like(wide_MD), where=length_M > 0)
    return unit_MD
