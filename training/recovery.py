"""The truth behind simulated rows, lined up with a prepared split: only evaluation may look at it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from simulator.oracle import Truth, read_truth
from training.dataset import ROW_ITEM, ROW_TIME, ROW_USER, Prepared
from training.errors import SourceInvalid, SourceUnreadable

IMPRESSIONS_FILE = "impressions.parquet"


def truth_of(logs: Path, data: Prepared, split: str) -> Truth:
    """Return the truth of a split's rows, in its row order.

    Args:
        logs: the folder that `dlen simulate` wrote.
        data: what `dlen prepare` made of it.
        split: validation or test, whose raw rows are kept.

    Raises:
        SourceInvalid: the folder is not the one that the data came from.
        simulator.errors.TruthInvalid: it holds no readable truth.
    """
    columns = data.info.columns
    kept = {ROW_USER: columns.user, ROW_ITEM: columns.item, ROW_TIME: columns.time}
    names = {ours: theirs for ours, theirs in kept.items() if theirs}
    truth = read_truth(logs)
    try:
        rows = pl.read_parquet(data.rows_path(split), columns=list(names))
        impressions = pl.read_parquet(logs / IMPRESSIONS_FILE, columns=list(names.values()))
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise SourceUnreadable(str(logs), found=str(exc)[:160], expected="a folder made by `dlen simulate`") from exc
    begin = int((impressions[names[ROW_TIME]] == rows[ROW_TIME][0]).arg_max() or 0)  # splits are runs of rows by time
    own = slice(begin, begin + len(rows))
    same = begin + len(rows) <= len(impressions) and all(
        impressions[theirs][own].cast(pl.String).equals(rows[ours].cast(pl.String), check_names=False)
        for ours, theirs in names.items()
    )
    if not same:
        raise SourceInvalid(str(logs), found="other rows", expected=f"the rows of {data.folder}, {split}")
    return Truth(truth.u_N[own], truth.z_N[own], truth.habit_N[own])
