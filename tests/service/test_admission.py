from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.admission import Admission, Deadline
from service.errors import DeadlineExceeded, Overloaded
from service.metrics import Metrics
from service.settings import Settings


def admission(**settings: Any) -> Admission:
    values = Settings.model_validate({"models": "m", "fusion": "f", **settings})
    return Admission(values, Metrics(CollectorRegistry()))


def run(found: Admission, seconds: float, times: int) -> int:
    for _ in range(times):
        found.take()
        found.give_back(seconds)
    return found.limit


def test_no_more_than_the_limit_are_let_in():
    metrics = Metrics(CollectorRegistry())
    found = Admission(Settings.model_validate({"models": "m", "fusion": "f", "max_in_flight": 3}), metrics)
    for _ in range(3):
        found.take()
    with pytest.raises(Overloaded) as caught:
        found.take()
    assert caught.value.headers == {"Retry-After": "1"}
    found.give_back(None)
    found.take()
    assert found.in_flight == 3
    assert metrics.registry.get_sample_value("dlen_rank_shed_total", {"reason": "limit"}) == 1


@pytest.mark.parametrize(
    ("milliseconds", "threads", "limit"), [(1, 1, 26), (5, 1, 6), (5, 4, 24), (12.5, 1, 3), (500, 1, 2), (0.01, 1, 64)]
)
def test_the_limit_lets_in_what_can_be_computed_within_queue_ms(milliseconds, threads, limit):
    found = admission(max_in_flight=64, queue_ms=25.0001, threads=threads)
    assert run(found, milliseconds / 1000, 1) == limit


def test_the_limit_falls_when_requests_grow_and_is_back_when_they_shrink():
    found = admission(max_in_flight=20, queue_ms=20)
    assert run(found, 0.001, 10) == 20
    assert run(found, 0.05, 200) == 2
    assert run(found, 0.001, 200) == 20


def test_a_limit_of_one_is_one():
    assert run(admission(max_in_flight=1), 0.001, 5) == 1


def test_requests_that_were_never_computed_do_not_count_as_fast_ones():
    found = admission(max_in_flight=64, queue_ms=25)
    run(found, 0.0125, 1)
    for _ in range(100):
        found.take()
        found.give_back(None)
    assert found.limit == 3


def test_a_deadline_that_has_passed_says_so():
    Deadline(time.monotonic() + 10, 10_000).check("predict")
    with pytest.raises(DeadlineExceeded, match="deadline before predict: got .* ms late, want 5 ms at most"):
        Deadline(time.monotonic() - 0.1, 5).check("predict")
    assert Deadline(time.monotonic() - 0.1, 5).seconds_to_compute == 0


def test_who_cannot_wait_so_long_meets_a_lower_limit():
    found = admission(max_in_flight=64, queue_ms=100, deadline_ms=1000)
    run(found, 0.01, 1)
    assert (found.limit, found.limit_for(1000), found.limit_for(100), found.limit_for(50)) == (11, 11, 6, 3)
    assert found.limit_for(1) == 1  # who finds the thread free may try
    for _ in range(3):
        found.take(50)
    with pytest.raises(Overloaded, match="got 3, want fewer than 3"):
        found.take(50)
    assert not found.room_by("50") and found.room_by("100") and found.room_by(None)
    found.take(100)
    assert found.in_flight == 4


def test_the_settings_deadline_counts_where_a_request_names_none():
    found = admission(max_in_flight=64, queue_ms=100, deadline_ms=50)
    run(found, 0.01, 1)
    for _ in range(3):
        found.take(50)
    assert not found.room_by(None) and not found.room_by("") and not found.room_by("x")
    assert found.room_by("400")
