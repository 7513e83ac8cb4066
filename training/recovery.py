"""How well P(UP) is recovered where it is known: on simulated rows, against the truth that training never reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.dataset import ROW_ITEM, ROW_TIME, ROW_USER, Prepared
from training.errors import SourceInvalid, SourceUnreadable
from training.metrics import auc, expected_calibration_error

TRUTH_FILE = "truth.parquet"
IMPRESSIONS_FILE = "impressions.parquet"


def true_rows(logs: Path, data: Prepared, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the true P(UP) [rows] and the true state [rows] of a split, in its row order.

    Args:
        logs: the folder that `dlen simulate` wrote.
        data: what `dlen prepare` made of it.
        split: validation or test, whose raw rows are kept.

    Raises:
        SourceInvalid: the folder is not the one that the data came from.
    """
    columns = data.info.columns
    wanted = {ROW_USER: columns.user, ROW_ITEM: columns.item, ROW_TIME: columns.time}
    try:
        rows = pl.read_parquet(data.rows_path(split), columns=list(wanted))
        ids = pl.read_parquet(logs / IMPRESSIONS_FILE, columns=[name for name in wanted.values() if name])
        truth = pl.read_parquet(logs / TRUTH_FILE, columns=["u", "z"])
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise SourceUnreadable(str(logs), found=str(exc)[:160], expected="a folder made by `dlen simulate`") from exc
    first = rows[ROW_TIME][0]
    times = ids[columns.time] if columns.time else pl.Series([])
    begin = int((times == first).arg_max() or 0) if len(times) else 0
    own = pl.concat([ids, truth], how="horizontal").slice(begin, len(rows))
    same = len(own) == len(rows) and all(
        own[name].cast(pl.String).equals(rows[kept].cast(pl.String), check_names=False)
        for kept, name in wanted.items()
        if name
    )
    if not same:
        raise SourceInvalid(str(logs), found="other rows", expected=f"the rows of {data.folder}, {split}")
    return own["u"].to_numpy().astype(np.float64), own["z"].to_numpy().astype(np.int64)


def recovery(
    p_up_B: NDArray[np.floating], true_u_B: NDArray[np.floating], state_B: NDArray[np.int64]
) -> dict[str, Any]:
    """Return means, calibration error, Brier score and AUC of P(UP) against the true state, the oracle's beside."""
    found, oracle = auc(state_B, p_up_B), auc(state_B, true_u_B)
    return {
        "mean": float(np.mean(p_up_B, dtype=np.float64)),
        "mean_true": float(np.mean(true_u_B)),
        "ece": expected_calibration_error(state_B, p_up_B),
        "brier": float(np.mean((p_up_B - state_B) ** 2)),
        "brier_oracle": float(np.mean((true_u_B - state_B) ** 2)),
        "auc_state": found,
        "auc_state_oracle": oracle,
        "auc_of_oracle": found / oracle if found is not None and oracle else None,
        "correlation": float(np.corrcoef(p_up_B, true_u_B)[0, 1]),
    }
