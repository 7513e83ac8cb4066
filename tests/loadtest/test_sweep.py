import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.drive import Outcome
from loadtest.errors import PlanInvalid
from loadtest.measure import measure
from loadtest.sweep import Slo, sweep


@functools.cache
def figures(p99_ms, status=200, lag_ms=0.0):
    size = 100
    return measure(
        Outcome(
            send_ns=(np.arange(size) * 1e7).astype(np.int64),
            latency_ns=np.full(size, int(p99_ms * 1e6)),
            lag_ns=np.full(size, int(lag_ms * 1e6)),
            status=np.full(size, status, dtype=np.int16),
            connections=1,
        ),
        0.0,
        1.0,
    )


def server_of(capacity, lag_ms=0.0):
    """A server that takes 10 ms below its capacity and 1 s above."""
    return lambda rate: figures(10 if rate <= capacity else 1_000, lag_ms=lag_ms if rate > capacity else 0.0)


@settings(max_examples=50, deadline=None)
@given(capacity=st.floats(2, 9_000), start=st.floats(1, 100), precision=st.sampled_from([0.02, 0.05, 0.2]))
def test_the_answer_holds_and_is_within_the_precision_of_the_capacity(capacity, start, precision):
    found = sweep(server_of(capacity), Slo(p99_ms=50), start, 10_000, precision)
    assert found.highest_rate_per_s <= capacity <= found.highest_rate_per_s * (1 + precision) * 1.0001
    assert len(found.steps) < 30
    assert not found.generator_limited
    assert not found.open_ended


def test_an_objective_that_holds_everywhere_ends_at_the_limit():
    found = sweep(server_of(1e9), Slo(p99_ms=50), 10, 300)
    assert [step.rate_per_s for step in found.steps] == [10, 20, 40, 80, 160, 300]
    assert found.highest_rate_per_s == 300
    assert found.open_ended


def test_an_objective_that_holds_nowhere_ends_without_an_answer():
    found = sweep(server_of(0), Slo(p99_ms=50), 64, 300)
    assert found.highest_rate_per_s is None
    assert found.steps[-1].rate_per_s == 1
    assert "no rate" in found.summary


def test_a_search_ended_by_a_late_generator_says_so():
    found = sweep(server_of(100, lag_ms=500), Slo(p99_ms=50), 10, 300)
    assert found.generator_limited
    assert "generator" in found.summary


def test_a_search_ended_by_errors_does_not_blame_the_generator():
    failing = dataclasses.replace(figures(10, lag_ms=500), ok=50, statuses={"200": 50, "503": 50})
    found = sweep(lambda rate: figures(10) if rate < 40 else failing, Slo(p99_ms=50), 10, 300)
    assert not found.generator_limited


@pytest.mark.parametrize(
    ("measurement", "why"),
    [
        (figures(10), None),
        (figures(60), "p99 60"),
        (figures(10, status=503), "no 2xx"),
        (dataclasses.replace(figures(10), ok=99, statuses={"200": 99, "503": 1}), "errors 1.00%, mostly 503"),
        (dataclasses.replace(figures(10), achieved_rate=90.0), "achieved 90%"),
    ],
)
def test_the_objective_names_what_breaks_it(measurement, why):
    found = Slo(p99_ms=50).why_not(measurement)
    assert found is None if why is None else why in found


@pytest.mark.parametrize(
    ("p99_ms", "start", "limit", "precision"),
    [(0, 1, 2, 0.1), (1, 0, 2, 0.1), (1, 3, 2, 0.1), (1, 1, float("inf"), 0.1), (1, 1, 2, 0)],
)
def test_settings_out_of_range_are_refused(p99_ms, start, limit, precision):
    with pytest.raises(PlanInvalid):
        sweep(server_of(1), Slo(p99_ms=p99_ms), start, limit, precision)
