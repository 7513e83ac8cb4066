"""Model outputs → the signals that a formula reads: joint or marginal, calibrated, as float64 rows.

Shapes: N candidates, T tasks in manifest order, K signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from fusion.calibration import Calibration, calibrate, calibrate_joint
from fusion.errors import InputInvalid
from fusion.formulas import Floats

P_UP = "p_up"
"""Name of P(UP) in expressions and explanations."""


class Probabilities(Struct, frozen=True):
    """What a model says about a request's candidates.

    Attributes:
        p_NT: P(task), any float dtype, tasks in manifest order.
        p_joint_NT: P(task, UP), or None from a model without a latent.
        p_up_N: P(UP), or None from a model without a latent.
    """

    p_NT: NDArray[Any]
    p_joint_NT: NDArray[Any] | None = None
    p_up_N: NDArray[Any] | None = None


class Candidates(Struct, frozen=True):
    """What else is known about the candidates; a policy says which of it it needs.

    Attributes:
        ids: candidate ids, for pins.
        keys: name → one value per candidate (text, int or None), for decay and caps; `group` is the usual one.
        attributes: name → float [N], for expressions and pins; NaN counts as not given.
        vectors_ND: item vectors for MMR and DPP.
        seed: what exploration is seeded with, such as the request's id.
    """

    ids: Sequence[str] | None = None
    keys: Mapping[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    vectors_ND: NDArray[Any] | None = None
    seed: str = ""


NO_CANDIDATES = Candidates()
"""Nothing known but the probabilities."""


@dataclass(frozen=True)
class SignalReader:
    """Picks the signals of some tasks from a model's outputs.

    Attributes:
        tasks: all of the model's tasks, in manifest order.
        columns: task axis positions, one per signal.
        joint: whether the signal is P(task, UP) rather than P(task).
        calibrations: one per signal.
    """

    tasks: tuple[str, ...]
    columns: tuple[int, ...]
    joint: tuple[bool, ...]
    calibrations: tuple[Calibration, ...]

    def read(self, probabilities: Probabilities, extra_rows: int = 0) -> Floats:
        """Return the signals, float64 [K + extra_rows, N]; the extra rows are not filled."""
        p_NT, p_joint_NT = probabilities.p_NT, probabilities.p_joint_NT
        signals_KN = np.empty((len(self.columns) + extra_rows, len(p_NT)))
        for row, column, joint, calibration in self._rows:
            if not joint:
                signals_KN[row] = p_NT[:, column]
                if calibration is not None:
                    signals_KN[row] = calibrate(signals_KN[row], calibration)
                continue
            assert p_joint_NT is not None
            signals_KN[row] = p_joint_NT[:, column]
            if calibration is not None:
                p_N = p_NT[:, column].astype(np.float64)
                signals_KN[row] = calibrate_joint(signals_KN[row], p_N, calibration)
        return signals_KN

    @cached_property
    def _rows(self) -> list[tuple[int, int, bool, Calibration | None]]:
        """Row, column, whether joint, and the calibration, None where it changes nothing."""
        asked = enumerate(zip(self.columns, self.joint, self.calibrations, strict=True))
        return [(row, column, joint, None if c.is_identity else c) for row, (column, joint, c) in asked]


def check_shapes(probabilities: Probabilities, tasks: int, *, joint: bool, p_up: bool) -> int:
    """Return N after checking that the arrays fit each other and the model.

    Raises:
        InputInvalid: names the array, its shape and the shape wanted.
    """
    p_NT = probabilities.p_NT
    if p_NT.ndim != 2 or p_NT.shape[1] != tasks:
        raise InputInvalid("p_NT", found=_shape_of(p_NT), expected=f"[N, {tasks}]")
    count = int(p_NT.shape[0])
    if joint:
        p_joint_NT = probabilities.p_joint_NT
        if p_joint_NT is None or p_joint_NT.shape != p_NT.shape:
            raise InputInvalid("p_joint_NT", found=_shape_of(p_joint_NT), expected=f"[{count}, {tasks}]")
    if p_up:
        p_up_N = probabilities.p_up_N
        if p_up_N is None or p_up_N.shape != (count,):
            raise InputInvalid("p_up_N", found=_shape_of(p_up_N), expected=f"[{count}]")
    return count


def _shape_of(array: NDArray[Any] | None) -> str:
    return "None" if array is None else f"shape {list(array.shape)}"


def read_attribute(candidates: Candidates, name: str, default: float, count: int) -> Floats:
    """Return a numeric attribute, float64 [N], `default` where it is not given.

    Raises:
        InputInvalid: another number of values than candidates.
    """
    given = candidates.attributes.get(name)
    if given is None:
        return np.full(count, default)
    values_N = np.asarray(given, dtype=np.float64)
    if values_N.shape != (count,):
        raise InputInvalid(f"attribute {name!r}", found=f"shape {list(values_N.shape)}", expected=f"[{count}]")
    return np.where(np.isfinite(values_N), values_N, default)
