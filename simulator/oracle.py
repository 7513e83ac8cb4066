"""How well the latent state can be known at all, and how well a model found it.

The oracle ranks rows by the true P(UP|x); no model can order the states better, so its AUC is the ceiling.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulator.errors import TruthInvalid

_BINS = 20


@dataclass(frozen=True)
class Truth:
    """The latent part of a simulated log, row by row: P(UP|x), the state, the user's expressive habit."""

    u_N: NDArray[np.float64]
    z_N: NDArray[np.int8]
    habit_N: NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """How a model's P(UP) compares with the truth.

    Attributes:
        rows: number of rows compared.
        mean_p_up, mean_u: mean of the model's and of the true P(UP).
        auc: AUC of the model's P(UP) against the state.
        oracle_auc: the same for the true P(UP), the ceiling.
        ece: expected calibration error against the state, 20 bins of equal size.
        brier, oracle_brier: mean squared error against the state.
        correlation: Pearson correlation of the model's and the true P(UP).
        habit_correlation: of P(UP) with the user's expressive habit; the truth's own stands beside it.
    """

    rows: int
    mean_p_up: float
    mean_u: float
    auc: float
    oracle_auc: float
    ece: float
    brier: float
    oracle_brier: float
    correlation: float
    habit_correlation: float
    oracle_habit_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name, for JSON."""
        return asdict(self)


def read_truth(folder: Path) -> Truth:
    """Return the truth of a simulation folder, in the order of its impressions.

    Raises:
        TruthInvalid: no readable truth.parquet with the columns u, z and habit.
    """
    path = folder / "truth.parquet"
    try:
        table = pq.read_table(path, columns=["u", "z", "habit"])
        u, z, habit = (table.column(name).to_numpy() for name in ("u", "z", "habit"))
    except (OSError, KeyError, pa.ArrowException) as exc:
        found = str(exc).splitlines()[0]
        raise TruthInvalid(str(path), found=found, expected="a truth.parquet of `dlen simulate`") from exc
    return Truth(u.astype(np.float64), z.astype(np.int8), habit.astype(np.float64))


def auc(score_N: NDArray[Any], state_N: NDArray[Any]) -> float:
    """Return the area under the ROC curve, ties counted half; NaN where a state is absent."""
    positive_N = np.asarray(state_N) > 0
    if len(positive_N) == 0:
        return float("nan")
    _, group_N = np.unique(score_N, return_inverse=True)
    groups = int(group_N.max()) + 1
    return auc_of_counts(
        np.bincount(group_N[positive_N], minlength=groups), np.bincount(group_N[~positive_N], minlength=groups)
    )


def auc_of_counts(positive_G: NDArray[Any], negative_G: NDArray[Any]) -> float:
    """Return the AUC of groups of tied rows in rising order of score, from each group's counts by state."""
    below_G = np.cumsum(negative_G) - negative_G
    pairs = float(positive_G.sum()) * float(negative_G.sum())
    return float((positive_G * (below_G + negative_G / 2)).sum()) / pairs if pairs else float("nan")


def oracle_auc(truth: Truth) -> float:
    """Return AUC(u, z): what a model that knows the true P(UP|x) would reach."""
    return auc(truth.u_N, truth.z_N)


def recovery(p_up_N: NDArray[Any], truth: Truth) -> Recovery:
    """Return how well `p_up_N`, row-aligned with the truth, recovers it.

    Raises:
        TruthInvalid: another number of rows, or values outside [0, 1].
    """
    p_N = np.asarray(p_up_N, dtype=np.float64)
    if p_N.shape != truth.u_N.shape:
        raise TruthInvalid("P(UP)", found=f"shape {p_N.shape}", expected=f"{truth.u_N.shape}, as the truth")
    if not np.all((p_N >= 0) & (p_N <= 1)):
        raise TruthInvalid("P(UP)", found="values outside [0, 1] or NaN", expected="probabilities")
    return Recovery(
        rows=len(p_N),
        mean_p_up=float(p_N.mean()),
        mean_u=float(truth.u_N.mean()),
        auc=auc(p_N, truth.z_N),
        oracle_auc=oracle_auc(truth),
        ece=_calibration_error(p_N, truth.z_N),
        brier=float(np.mean((p_N - truth.z_N) ** 2)),
        oracle_brier=float(np.mean((truth.u_N - truth.z_N) ** 2)),
        correlation=_correlation(p_N, truth.u_N),
        habit_correlation=_correlation(p_N, truth.habit_N),
        oracle_habit_correlation=_correlation(truth.u_N, truth.habit_N),
    )


def _calibration_error(p_N: NDArray[np.float64], z_N: NDArray[np.int8]) -> float:
    parts = np.array_split(np.argsort(p_N, kind="stable"), _BINS)
    gaps = [len(part) * abs(float(p_N[part].mean()) - float(z_N[part].mean())) for part in parts if len(part)]
    return sum(gaps) / len(p_N)


def _correlation(left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    if left_N.std() == 0 or right_N.std() == 0:
        return float("nan")
    return float(np.corrcoef(left_N, right_N)[0, 1])
