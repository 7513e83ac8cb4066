"""Per-task calibration: σ(logit(p) / temperature + offset), as fitted on validation rows by the exporter.

Knows nothing of where the numbers come from (the bundle's manifest). Shapes: N candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusion.errors import InputInvalid
from fusion.formulas import Floats


@dataclass(frozen=True)
class Calibration:
    """One task's calibration; temperature 1 and offset 0 change nothing, to the last bit."""

    temperature: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Check that both are finite and the temperature positive."""
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.offset)):
            found = f"temperature {self.temperature}, offset {self.offset}"
            raise InputInvalid("calibration", found=found, expected="a positive temperature and a finite offset")

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.temperature == 1.0 and self.offset == 0.0


def calibrate(p_N: Floats, calibration: Calibration) -> Floats:
    """Return calibrated probabilities, float64 [N] in [0, 1]; 0 and 1 stay what they are."""
    if calibration.is_identity:
        return p_N
    with np.errstate(divide="ignore", over="ignore"):
        logit_N = np.log(p_N) - np.log1p(-p_N)
        return 1.0 / (1.0 + np.exp(-(logit_N / calibration.temperature + calibration.offset)))


def calibrate_joint(joint_N: Floats, p_N: Floats, calibration: Calibration) -> Floats:
    """Return joint probabilities after the marginal's calibration, P(UP | task) held as the model has it.

    joint' = joint · p' / p, so joint' ≤ p' where joint ≤ p; 0 where p is 0.
    """
    if calibration.is_identity:
        return joint_N
    calibrated_N = calibrate(p_N, calibration)
    ratio_N = np.divide(joint_N, p_N, out=np.zeros_like(joint_N), where=p_N > 0)
    return ratio_N * calibrated_N
