"""Paired bootstrap of AUCs over users: every model is judged on the same redrawn users.

Rows of one user are not independent, so users are redrawn, never rows. A redraw with one class only gives NaN
and is left out of the intervals. Legend: N rows, U users, S scores, R redraws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CELLS_AT_ONCE = 4_000_000


def user_weights(users: int, redraws: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield, redraw by redraw, how often each user was drawn: int32 [U], summing to U."""
    for child in np.random.SeedSequence(seed).spawn(redraws):
        drawn = np.random.default_rng(child).integers(0, users, users)
        yield np.bincount(drawn, minlength=users).astype(np.int32)


def bootstrap_aucs(
    labels_N: NDArray[np.integer],
    scores_SN: NDArray[np.floating],
    users_N: NDArray[np.integer],
    redraws: int,
    seed: int,
) -> Floats:
    """Return the AUC of every score on every redraw of the users, float64 [S, R]; ties count half.

    Args:
        labels_N: 0 or 1.
        scores_SN: one row of scores per model or seed.
        users_N: user numbers 0 … U − 1.
        redraws: R.
        seed: of the redraws; equal seeds redraw the same users.
    """
    users = int(users_N.max()) + 1
    orders = [_Order(labels_N, scores_N, users_N) for scores_N in scores_SN]
    aucs = np.empty((len(orders), redraws))
    at_once = max(1, _CELLS_AT_ONCE // max(len(labels_N), 1))
    weights = user_weights(users, redraws, seed)
    for start in range(0, redraws, at_once):
        block_RU = np.stack([next(weights) for _ in range(min(at_once, redraws - start))])
        for s, order in enumerate(orders):
            aucs[s, start : start + len(block_RU)] = order.aucs(block_RU)
    return aucs


class _Order:
    """Rows in the order of one score: per positive, how many negatives lie below and not above it."""

    def __init__(self, labels_N: NDArray[np.integer], scores_N: NDArray[np.floating], users_N: NDArray[np.integer]):
        positive = labels_N == 1
        negative_scores, negative_users = scores_N[~positive], users_N[~positive]
        order = np.argsort(negative_scores, kind="stable")
        self.negative_users = negative_users[order]
        self.positive_users = users_N[positive]
        sorted_scores = negative_scores[order]
        self.below = np.searchsorted(sorted_scores, scores_N[positive], side="left")
        self.not_above = np.searchsorted(sorted_scores, scores_N[positive], side="right")

    def aucs(self, weights_RU: NDArray[np.int32]) -> Floats:
        """Return the AUCs [R] with each row counted as often as its user."""
        sums = np.zeros((len(weights_RU), len(self.negative_users) + 1), dtype=np.int64)
        np.cumsum(weights_RU[:, self.negative_users], axis=1, out=sums[:, 1:])
        own = weights_RU[:, self.positive_users]
        wins: Floats = (own * (sums[:, self.below] + sums[:, self.not_above])).sum(1) / 2.0
        pairs: Floats = own.sum(1, dtype=np.float64) * sums[:, -1]
        aucs = np.full(len(pairs), np.nan)
        np.divide(wins, pairs, out=aucs, where=pairs > 0)
        return aucs


def mean_over_seeds(aucs_SR: Floats, seed: int) -> Floats:
    """Return the mean AUC over redrawn seeds [R], so that an interval covers the luck of training too.

    Equal `seed`s redraw the same seeds for every model: differences stay paired.
    """
    seeds, redraws = aucs_SR.shape
    chosen_RS = np.random.default_rng(seed).integers(0, seeds, (redraws, seeds))
    means: Floats = aucs_SR.T[np.arange(redraws)[:, None], chosen_RS].mean(1)
    return means


def interval(values_R: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile interval of the redraws that have a value; None when none has."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
