"""History before a row's day, against a slow loop."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sources.history import Rate, Tally, with_days_since, with_tally

TALLY = Tally("k", ("key",), (Rate("y", 2.0),))
ROW = st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 5), st.sampled_from([0, 1, None]))


def frame(rows):
    return pl.DataFrame(rows, schema={"key": pl.String, "day": pl.Int32, "y": pl.Int64}, orient="row").with_columns(
        pl.lit(1).alias("shown")
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_counts_and_rates_match_a_slow_loop(rows):
    log = frame(rows)
    found = with_tally(log, log, TALLY)
    for (key, day, _), count, rate in zip(rows, found["k_count"], found["k_y_rate"], strict=True):
        earlier = [y for k, d, y in rows if k == key and d < day and key is not None]
        seen = [y for y in earlier if y is not None]
        everything = [y for _, d, y in rows if d < day and y is not None]
        assert count == len(earlier)
        if seen:
            prior = sum(everything) / len(everything)
            assert abs(rate - (sum(seen) + 2 * prior) / (len(seen) + 2)) < 1e-12
        else:
            assert rate is None


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25))
def test_with_a_lag_the_latest_days_are_left_out(rows):
    log = frame(rows)
    found = with_tally(log, log, Tally("k", ("key",), (Rate("y", 2.0),), lag=2))
    for (key, day, _), count, rate in zip(rows, found["k_count"], found["k_y_rate"], strict=True):
        seen = [y for k, d, y in rows if k == key and d < day - 1 and key is not None]
        assert count == len(seen)
        assert (rate is None) == (not [y for y in seen if y is not None])


def test_counts_per_day_with_a_lag_divide_by_the_days_that_count():
    log = frame([("a", 0, 1), ("a", 1, 1), ("a", 2, 1), ("a", 3, 1)])
    found = with_tally(log, log, Tally("k", ("key",), (), per_day=True, lag=2))
    assert found["k_count"].to_list() == [None, None, 1.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=25), st.integers(0, 5), st.integers(0, 5))
def test_outcomes_of_a_day_and_later_change_nothing_on_it(rows, day, flip):
    log = frame(rows)
    later = log.with_columns(pl.when(pl.col("day") >= day).then(1 - pl.col("y")).otherwise("y").alias("y"))
    seen = pl.col("day") <= day
    one = with_tally(log, log, TALLY).filter(seen).drop("y")
    other = with_tally(later, later, TALLY).filter(seen).drop("y")
    assert one.equals(other)


def test_counts_per_day_leave_out_rows_of_unknown_day():
    log = frame([("a", 0, 1), ("a", 1, 1), ("a", 1, 0), ("a", 3, 1)])
    log = log.with_columns(pl.when(pl.col("day") > 0).then("shown").alias("shown"))
    found = with_tally(log, log, Tally("k", ("key",), (), per_day=True))
    assert found["k_count"].to_list()[1:] == [None, None, 1.0]


def test_days_since_the_last_earlier_day():
    log = frame([("a", 0, 1), ("a", 3, 1), ("a", 3, 1), ("b", 3, 1)])
    assert with_days_since(log, log, ["key"], "since")["since"].to_list() == [None, 3.0, 3.0, None]
