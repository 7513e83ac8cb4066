import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.drive import NOT_SENT, TIMED_OUT, Outcome
from loadtest.measure import decode_histogram, histogram_of, measure, summary_ms


def outcome(send_s, latency_ms, status=None, lag_ms=0.0):
    size = len(send_s)
    return Outcome(
        send_ns=(np.array(send_s) * 1e9).astype(np.int64),
        latency_ns=(np.broadcast_to(latency_ms, size) * 1e6).astype(np.int64),
        lag_ns=(np.broadcast_to(lag_ms, size) * 1e6).astype(np.int64),
        status=np.broadcast_to(200 if status is None else status, size).astype(np.int16),
        connections=1,
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=200))
def test_percentiles_are_those_of_the_sorted_values_within_a_rank_and_a_thousandth(values_us):
    figures = summary_ms(histogram_of(np.array(values_us, dtype=np.float64)))
    ordered = sorted(values_us)
    for percentile in (50, 90, 99):
        rank = int(np.ceil(percentile / 100 * len(ordered))) - 1
        low, high = ordered[max(0, rank - 1)], ordered[min(len(ordered) - 1, rank + 1)]
        assert low * 0.999 - 1 <= figures[f"p{percentile}"] * 1e3 <= high * 1.001 + 1
    assert figures["max"] * 1e3 == pytest.approx(max(values_us), rel=1e-3, abs=1)


def test_warm_up_and_what_follows_are_not_counted():
    figures = measure(outcome([0.0, 0.9, 1.0, 1.5, 2.9, 3.0], [900, 900, 10, 20, 30, 900]), 1.0, 2.0)
    assert figures.planned == 3
    assert figures.offered_rate == pytest.approx(1.5)
    assert figures.latency_ms["max"] == pytest.approx(30, rel=1e-3)
    assert [second.planned for second in figures.seconds] == [2, 1]


def test_failures_are_not_latency_of_answers_and_are_latency_of_all():
    figures = measure(outcome([0, 0.1, 0.2, 0.3], [5, 5, 3000, 1], [200, 204, TIMED_OUT, NOT_SENT]), 0, 1)
    assert figures.statuses == {"not sent (queue full)": 1, "timed out": 1, "200": 1, "204": 1}
    assert figures.latency_ms["max"] == pytest.approx(5, rel=1e-3)
    assert figures.all_latency_ms["max"] == pytest.approx(3000, rel=1e-3)
    assert figures.error_share == 0.5


def test_answers_that_come_late_lower_the_achieved_rate_and_not_the_offered():
    figures = measure(outcome(np.arange(100) / 100, 1_000 + np.arange(100) * 10.0), 0, 1)
    assert figures.offered_rate == 100
    assert figures.achieved_rate == pytest.approx(100 / 2.98)


@pytest.mark.parametrize(("lag_ms", "valid"), [(0.4, True), (0.6, False)])
def test_a_generator_whose_lag_is_over_a_twentieth_of_the_latency_makes_the_run_invalid(lag_ms, valid):
    figures = measure(outcome(np.arange(100) / 100, 10.0, lag_ms=lag_ms), 0, 1)
    assert figures.valid == valid
    assert (figures.why_invalid is None) == valid


def test_a_run_without_a_request_is_invalid_and_has_no_figures():
    figures = measure(outcome([], []), 0, 1)
    assert figures.why_invalid == "no request fell into the measured time"
    assert np.isnan(figures.latency_ms["p99"])
    assert figures.seconds == ()


def test_the_histogram_survives_its_encoding():
    figures = measure(outcome(np.arange(100) / 100, np.arange(100) + 1.0), 0, 1)
    assert summary_ms(decode_histogram(figures.histogram)) == figures.latency_ms
    assert dataclasses.asdict(figures)["histogram"] == figures.histogram
