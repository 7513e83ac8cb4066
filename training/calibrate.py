"""Per-task calibration p' = σ(logit(p) / temperature + offset), fitted by maximum likelihood on held-back rows.

Platt scaling (1999) of the model's own logit: Newton steps on the mean log-loss, which is convex in 1/temperature
and offset. Knows nothing of models or of bundles. Legend: B rows, T tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import Calibration

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]

FEWEST = 10
"""Rows with and without the behaviour that a fit needs, each."""
SLOPES = (0.05, 20.0)
"""Bounds of 1/temperature; a model whose probabilities fall with the behaviour is not turned round."""
SMALLEST_P = 1e-7
_STEPS = 100
_TOLERANCE = 1e-10


def fit_calibrations(p_BT: NDArray[Any], labels_BT: Labels) -> list[Calibration | None]:
    """Return the calibration of each task; None where there are too few rows of either kind to fit one."""
    return [fit_task(p_BT[:, task].astype(np.float64), labels_BT[:, task]) for task in range(p_BT.shape[1])]


def fit_task(p_B: Floats, labels_B: Labels) -> Calibration | None:
    """Return one task's calibration, fitted on all rows.

    PCOC before and after are measured on the second half of the rows, after a fit on the first half alone: on the rows
    of the fit itself it would be 1 whatever the model. They are left out where a half has too few rows of either kind.
    """
    if _rarer(labels_B) < FEWEST:
        return None
    logits_B = logit(p_B)
    slope, offset = fit(logits_B, labels_B)
    half = len(p_B) // 2
    first_B, second_B = labels_B[:half], labels_B[half:]
    before = after = None
    if min(_rarer(first_B), _rarer(second_B)) >= FEWEST:
        before = pcoc(p_B[half:], second_B)
        after = pcoc(apply(logits_B[half:], *fit(logits_B[:half], first_B)), second_B)
    return Calibration(temperature=1.0 / slope, offset=offset, pcoc_before=before, pcoc_after=after)


def _rarer(labels_B: Labels) -> int:
    """Return the number of rows of the rarer kind."""
    positives = int(labels_B.sum())
    return min(positives, len(labels_B) - positives)


def fit(logits_B: Floats, labels_B: Labels) -> tuple[float, float]:
    """Return slope (1/temperature) and offset of least mean log-loss, the slope within `SLOPES`."""
    slope, offset = _newton(logits_B, labels_B, None)
    if not SLOPES[0] <= slope <= SLOPES[1]:
        return _newton(logits_B, labels_B, float(np.clip(slope, *SLOPES)))
    return slope, offset


def log_loss(logits_B: Floats, labels_B: Labels, slope: float, offset: float) -> float:
    """Return the mean log-loss in nats."""
    z_B = slope * logits_B + offset
    return float(np.mean(np.logaddexp(0.0, z_B) - labels_B * z_B))


def apply(logits_B: Floats, slope: float, offset: float) -> Floats:
    """Return calibrated probabilities of logits."""
    return np.exp(-np.logaddexp(0.0, -(slope * logits_B + offset)))


def logit(p_B: Floats) -> Floats:
    """Return log(p / (1 − p)), p held within 1e-7 of 0 and 1."""
    held_B = np.clip(p_B, SMALLEST_P, 1.0 - SMALLEST_P)
    return np.log(held_B) - np.log1p(-held_B)


def pcoc(p_B: Floats, labels_B: Labels) -> float:
    """Return predicted over observed positives (predicted click over click); 1 is calibrated on the whole."""
    return float(p_B.sum() / labels_B.sum())


def _newton(logits_B: Floats, labels_B: Labels, fixed_slope: float | None) -> tuple[float, float]:
    """Return the minimum of the log-loss, over the offset alone where the slope is fixed; steps are halved at need."""
    free = np.array([fixed_slope is None, True])
    point = np.array([1.0 if fixed_slope is None else fixed_slope, 0.0])
    columns_BK = np.stack([logits_B, np.ones_like(logits_B)], axis=1)
    loss = log_loss(logits_B, labels_B, *point)
    for _ in range(_STEPS):
        p_B = apply(logits_B, *point)
        gradient_K = (columns_BK.T @ (p_B - labels_B) / len(p_B))[free]
        if np.abs(gradient_K).max() < _TOLERANCE:
            break
        curvature_KK = ((columns_BK.T * (p_B * (1.0 - p_B))) @ columns_BK / len(p_B))[np.ix_(free, free)]
        step_K = np.linalg.solve(curvature_KK + 1e-12 * np.eye(len(gradient_K)), gradient_K)
        share = 1.0
        while share > 1e-8:
            trial = point.copy()
            trial[free] -= share * step_K
            if (next_loss := log_loss(logits_B, labels_B, *trial)) <= loss:
                break
            share /= 2
        else:
            break
        point, loss = trial, next_loss
        if abs(point[0]) > 1e4 or abs(point[1]) > 1e4:  # labels that the logits part without error
            break
    return float(point[0]), float(point[1])
