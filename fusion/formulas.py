"""The arithmetic of the formulas: signals → terms → score. Knows nothing of configs, tasks' names or models.

Shapes: N candidates, K weighted signals (tasks in manifest order, then P(UP) where it has a weight). Terms are
added one by one in that order, so that a sum of explained terms is the score to the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusion import loops

Floats = NDArray[np.float64]

TINY_P_UP = 1e-30
"""Floor of P(UP) in logs: p_up ** weight is then as good as 0 at P(UP) = 0, and no log is infinite."""


def weighted_terms(signals_KN: Floats, weights_K: Floats) -> Floats:
    """Return w·s, float64 [K, N]."""
    terms_KN: Floats = np.multiply(signals_KN, weights_K[:, None])
    return terms_KN


def add_terms(terms_KN: Floats) -> Floats:
    """Return the terms' sum, float64 [N], added from the first term to the last."""
    first_N, *others = terms_KN
    total_N: Floats = first_N.copy()
    for terms_N in others:
        total_N += terms_N
    return total_N


def squeeze_negative(total_N: Floats, negative: float, weight: float, ceiling: float) -> Floats:
    """Return scores ≥ 0 in the order of the totals: every negative total lies below every other one.

    c ≥ 0 → c + ceiling; c < 0 → (c + n)/t·ceiling with n = Σ|w| over negative weights, t = Σ|w|, for signals in
    [0, 1], so that a later multiplier below 1 lowers every score. The form is that of the offset in X's
    published heavy ranker (2023).

    Args:
        total_N: sums of terms.
        negative: n.
        weight: t.
        ceiling: below it lie all that were negative.
    """
    squeezed_N = np.maximum(total_N + negative, 0.0)
    squeezed_N *= ceiling / weight
    np.minimum(squeezed_N, np.nextafter(ceiling, 0.0), out=squeezed_N)  # rounding may reach the ceiling, or pass it
    return np.where(total_N < 0, squeezed_N, total_N + ceiling)


def power_terms(signals_KN: Floats, weights_K: Floats, floors_K: Floats) -> Floats:
    """Return w·log(s + floor), float64 [K, N]; exp of their sum is Π (s + floor)^w."""
    terms_KN = np.add(signals_KN, floors_K[:, None])
    np.log(terms_KN, out=terms_KN)
    terms_KN *= weights_K[:, None]
    return terms_KN


def rank_within(signals_KN: Floats) -> NDArray[np.intp]:
    """Return each candidate's rank by each signal, [K, N], from 1 (largest); equal signals have equal ranks."""
    single_KN = signals_KN.astype(np.float32)
    bits_KN = single_KN.view(np.int32)
    if np.array_equal(single_KN, signals_KN) and (bits_KN >= 0).all():
        return _rank_single(bits_KN)
    count = signals_KN.shape[1]
    ranks_KN = np.empty(signals_KN.shape, dtype=np.intp)
    places_N = np.arange(1, count + 1)
    for signal_N, ranks_N in zip(signals_KN, ranks_KN, strict=True):
        order_N = np.argsort(-signal_N)
        sorted_N = signal_N[order_N]
        equal_N = sorted_N[1:] == sorted_N[:-1]  # to its left neighbour
        if equal_N.any():
            first_N = places_N.copy()  # place of the first equal signal
            first_N[1:][equal_N] = 1
            ranks_N[order_N] = np.maximum.accumulate(first_N)
        else:
            ranks_N[order_N] = places_N
    return ranks_KN


def _rank_single(bits_KN: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return the ranks of float32 numbers ≥ 0, given as their bits, which order as the numbers do.

    Bits and candidate together are one integer, and sorting integers takes a fourth of the time of sorting places.
    """
    signals, count = bits_KN.shape
    keys_KN = bits_KN.astype(np.int64)
    keys_KN <<= 32
    keys_KN += np.arange(count)
    keys_KN.sort(axis=1)
    at_KN = keys_KN & 0xFFFFFFFF
    at_KN += count * np.arange(signals)[:, None]
    keys_KN >>= 32
    equal_KN = keys_KN[:, 1:] == keys_KN[:, :-1]  # to its right neighbour, the larger one
    places = np.arange(count, 0, -1)
    ranks = np.empty(signals * count, dtype=np.intp)
    if equal_KN.any():
        places = np.broadcast_to(places, keys_KN.shape).copy()
        places[:, :-1][equal_KN] = 0
        places = np.maximum.accumulate(places[:, ::-1], axis=1)[:, ::-1]  # of the last equal signal
    ranks[at_KN] = places
    return ranks.reshape(signals, count)


def rank_sum_terms(ranks_KN: NDArray[np.intp], weights_K: Floats, beta: float, smoothing: float) -> Floats:
    """Return w / (rank^beta + smoothing), float64 [K, N]."""
    by_rank = 1.0 / (np.arange(1, ranks_KN.shape[1] + 1, dtype=np.float64) ** beta + smoothing)
    return np.multiply(by_rank[ranks_KN - 1], weights_K[:, None])


def rank_product_terms(ranks_KN: NDArray[np.intp], weights_K: Floats, beta: float, smoothing: float) -> Floats:
    """Return −w·log(rank^beta + smoothing), float64 [K, N]; exp of their sum is Π (rank^beta + smoothing)^−w."""
    by_rank = -np.log(np.arange(1, ranks_KN.shape[1] + 1, dtype=np.float64) ** beta + smoothing)
    return np.multiply(by_rank[ranks_KN - 1], weights_K[:, None])


def order_by_score(score_N: Floats) -> NDArray[np.intp]:
    """Return candidate indices by score descending; equal scores keep their input order."""
    if loops.compiled is not None and (order_N := loops.compiled.order_by_score(score_N)) is not None:
        return order_N
    return (-score_N).argsort(kind="stable")
