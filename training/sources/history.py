"""What was known of a key (a user, a video, a pair of them …) before a row's day: counts and smoothed rates.

Everything here looks back strictly: a row of day d sees the log up to the end of day d − 1, so its own outcome
and those of its day cannot leak into it. Knows nothing of any particular log's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

DAY = "day"
"""Column with the day number, in the log and in the rows."""
_UNIT = float(1 << 20)
SHOWN = "shown"
"""Column of the log that is null in rows whose day is not known exactly (they come before all others)."""


@dataclass(frozen=True)
class Rate:
    """A smoothed mean of an outcome: (sum + weight · prior) / (count + weight), null where the count is 0.

    Attributes:
        outcome: the log's column; null where it was not observed.
        weight: how many observations the prior is worth.
    """

    outcome: str
    weight: float


@dataclass(frozen=True)
class Tally:
    """Rates of outcomes by key, as columns `<prefix>_<outcome>_rate`, and `<prefix>_count`.

    Attributes:
        prefix: of the columns.
        keys: columns that the log and the rows share.
        rates: what is measured.
        per_day: count only rows where `SHOWN` is not null, per day of them that the row can look back on.
        lag: days between the row's day and the last day counted; with 2 the day before it is left out.
    """

    prefix: str
    keys: tuple[str, ...]
    rates: tuple[Rate, ...]
    per_day: bool = False
    lag: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `with_tally` adds."""
        return (f"{self.prefix}_count", *(f"{self.prefix}_{rate.outcome}_rate" for rate in self.rates))


def with_tally(rows: pl.DataFrame, log: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Return the rows, in their order, with a tally's columns.

    Args:
        rows: hold the tally's keys and `day`.
        log: holds the tally's keys, its outcomes and `day`; may hold the rows themselves.
        tally: what to count.
    """
    outcomes = [SHOWN, *(rate.outcome for rate in tally.rates)]
    seen_by = rows.select(*tally.keys, pl.col(DAY) - (tally.lag - 1))
    known = _before(seen_by, log, tally.keys, outcomes)
    prior = _before(seen_by, log, (), outcomes)
    count = known.get_column("rows").fill_null(0).cast(pl.Float64)
    if tally.per_day:
        days = seen_by.get_column(DAY) - log.filter(pl.col(SHOWN).is_not_null()).get_column(DAY).min()
        count = (known.get_column(f"n_{SHOWN}").fill_null(0) / days.clip(0).cast(pl.Float64)).fill_nan(None)
    added = [count.alias(f"{tally.prefix}_count")]
    for rate in tally.rates:
        total, number = known.get_column(f"sum_{rate.outcome}"), known.get_column(f"n_{rate.outcome}")
        mean = prior.get_column(f"sum_{rate.outcome}") / prior.get_column(f"n_{rate.outcome}")
        smoothed = (total + rate.weight * mean) / (number + rate.weight)
        name = f"{tally.prefix}_{rate.outcome}_rate"
        added.append(pl.select(pl.when(number > 0).then(smoothed).alias(name)).to_series())
    return rows.with_columns(added)


def with_days_since(rows: pl.DataFrame, log: pl.DataFrame, keys: Sequence[str], name: str) -> pl.DataFrame:
    """Return the rows with the number of days since the key's last earlier day in the log; null without one."""
    last = log.select(*keys, DAY).unique().with_columns(pl.col(DAY).alias("last_day"))
    known = _joined(rows, last, tuple(keys))
    return rows.with_columns((rows.get_column(DAY) - known.get_column("last_day")).cast(pl.Float64).alias(name))


def _before(rows: pl.DataFrame, log: pl.DataFrame, keys: tuple[str, ...], outcomes: list[str]) -> pl.DataFrame:
    """Return, per row, count and sums of the key's log rows of earlier days."""
    known = log.lazy().join(rows.lazy().select(keys).unique(), on=list(keys), how="semi") if keys else log.lazy()
    daily = (
        known.select(*keys, DAY, *outcomes)
        .group_by(*keys, DAY)
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            *(pl.col(outcome).count().cast(pl.Int64).alias(f"n_{outcome}") for outcome in outcomes),
            *((pl.col(outcome) * _UNIT).round().cast(pl.Int64).sum().alias(f"sum_{outcome}") for outcome in outcomes),
        )
        .sort(DAY)
    )
    # sums are of whole units, so that they are exact and no order of rows or threads shows in a feature
    totals = pl.exclude(*keys, DAY).cum_sum()
    daily = daily.with_columns(totals.over(*keys) if keys else totals).with_columns(pl.col("^sum_.*$") / _UNIT)
    return _joined(rows, daily.collect(), keys)


def _joined(rows: pl.DataFrame, daily: pl.DataFrame, keys: tuple[str, ...]) -> pl.DataFrame:
    """Return, per row and in row order, the key's latest entry of an earlier day; nulls without one."""
    wanted = rows.select(*keys, DAY).with_row_index("__row").sort(DAY)
    found = wanted.join_asof(
        daily.sort(DAY),
        on=DAY,
        by=list(keys) or None,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return found.sort("__row").drop("__row", *keys, DAY)
