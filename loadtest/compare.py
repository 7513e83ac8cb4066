"""Says whether a candidate is slower or faster than a reference, from rounds measured in pairs.

Two runs minutes apart differ by what else the machine did; rounds made back to back, in alternating order, share it.
Knows nothing of sockets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import BaselineInvalid, PlanInvalid

FIGURES = ("p50_ms", "p99_ms", "achieved_rate")
MIN_ROUNDS = 3
_LOWER_IS_BETTER = ("p50_ms", "p99_ms")
_SIGNIFICANCE = 0.05
_RESAMPLES = 4_000
_EXACT_ROUNDS = 12


@dataclass(frozen=True)
class Ratio:
    """Candidate over reference for one figure.

    Attributes:
        reference, candidate: geometric means over the rounds.
        mean, low, high: geometric mean of the rounds' ratios with its 95 % bootstrap interval.
        p_value: of the sign-flip test that the ratios lie around 1.
        verdict: `worse`, `better` or `no difference shown`.
        by_round: the ratio of each round.
    """

    figure: str
    reference: float
    candidate: float
    mean: float
    low: float
    high: float
    p_value: float
    verdict: str
    by_round: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The ratios of all figures, and the verdict: `regressed` when a figure is worse by more than the tolerance."""

    rounds: int
    tolerance: float
    ratios: tuple[Ratio, ...]
    regressed: bool


def measure_rounds(
    candidate: Callable[[int], dict[str, float]],
    reference: Callable[[int], dict[str, float]] | None,
    rounds: int,
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the figures of candidate and reference, round by round, in the order AB BA AB …

    Args:
        candidate, reference: give the figures of a round by its number; a reference of None is left out.
        rounds: how many.

    Raises:
        PlanInvalid: fewer rounds than a verdict needs.
    """
    if rounds < MIN_ROUNDS:
        raise PlanInvalid("rounds", found=rounds, expected=f"{MIN_ROUNDS} or more")
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for number in range(rounds):
        if reference is None:
            ours.append(candidate(number))
        elif number % 2 == 0:
            theirs.append(reference(number))
            ours.append(candidate(number))
        else:
            ours.append(candidate(number))
            theirs.append(reference(number))
    return ours, theirs


def compare(
    candidate: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], tolerance: float = 0.03
) -> Comparison:
    """Return the verdict over paired rounds.

    A figure is worse (better) when the sign-flip test rejects "no difference" at 5 % and the mean ratio is beyond the
    tolerance. Fewer than 6 rounds cannot reject anything at 5 %.

    Raises:
        BaselineInvalid: rounds do not pair up, or a figure of a round is missing or not positive.
    """
    if len(candidate) != len(reference) or len(candidate) < MIN_ROUNDS:
        found = f"{len(candidate)} and {len(reference)} rounds"
        raise BaselineInvalid("rounds", found=found, expected=f"the same number, {MIN_ROUNDS} or more")
    ratios = tuple(_ratio(figure, candidate, reference, tolerance) for figure in FIGURES)
    regressed = any(ratio.verdict == "worse" for ratio in ratios)
    return Comparison(len(candidate), tolerance, ratios, regressed)


def _ratio(
    figure: str, candidate: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], tolerance: float
) -> Ratio:
    ours, theirs = _logs(figure, candidate, "candidate"), _logs(figure, reference, "reference")
    differences = ours - theirs
    mean = float(differences.mean())
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), (2.5, 97.5)).tolist()
    p_value = sign_flip_p_value(differences)
    higher = mean > 0
    shown = p_value < _SIGNIFICANCE and abs(mean) > np.log1p(tolerance)
    verdict = "no difference shown"
    if shown:
        verdict = "worse" if higher == (figure in _LOWER_IS_BETTER) else "better"
    return Ratio(
        figure=figure,
        reference=float(np.exp(theirs.mean())),
        candidate=float(np.exp(ours.mean())),
        mean=float(np.exp(mean)),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        p_value=p_value,
        verdict=verdict,
        by_round=tuple(np.exp(differences).tolist()),
    )


def sign_flip_p_value(differences: NDArray[np.float64]) -> float:
    """Return how often a mean as far from 0 arises when each difference's sign is chance (two-sided, exact)."""
    size = len(differences)
    if size <= _EXACT_ROUNDS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=size)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (2**_EXACT_ROUNDS, size))
        signs[0] = 1.0
    means = np.abs((signs * differences).mean(axis=1))
    return float((means >= abs(differences.mean()) * (1 - 1e-12)).mean())


def _logs(figure: str, rounds: Sequence[dict[str, Any]], side: str) -> NDArray[np.float64]:
    values = [entry.get(figure) for entry in rounds]
    for number, value in enumerate(values, 1):
        if not isinstance(value, int | float) or not value > 0:
            raise BaselineInvalid(f"{side}: round {number}: {figure}", found=value, expected="a positive figure")
    return np.log(np.array(values, dtype=np.float64))
