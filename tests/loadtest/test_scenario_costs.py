"""The verdict of `costs`, which compares round by round."""

from __future__ import annotations

import urllib.request

import pytest

from loadtest.scenarios import costs


def spent(keys_logs: float) -> dict[str, list[float]]:
    """Rounds of which each is slower than the one before, by much more than anything costs."""
    plain = [2.0, 3.0, 4.0, 6.0, 9.0]
    made = {name: [value * 1.01 for value in plain] for name in costs.variants("keys", "http://c")}
    return made | {costs.PLAIN: plain, costs.KEYS_LOGS: [value * keys_logs for value in plain]}


@pytest.mark.parametrize(("keys_logs", "passed"), [(1.0, True), (1.029, True), (1.031, False), (0.9, True)])
def test_keys_and_logs_are_judged_by_the_ratio_of_each_round(keys_logs, passed):
    found = costs.added(spent(keys_logs))
    assert found[costs.KEYS_LOGS].percent == pytest.approx(100 * (keys_logs - 1), abs=0.01)
    assert found["keys"].lowest == found["keys"].highest == pytest.approx(1, abs=0.01)
    assert [check.passed for check in costs.checks(found)] == [passed]


def test_one_slow_round_does_not_decide():
    rounds = spent(1.0)
    rounds[costs.KEYS_LOGS][0] *= 5
    assert costs.checks(costs.added(rounds))[0].passed


def test_the_collector_takes_what_is_sent():
    with costs._collector() as address:
        request = urllib.request.Request(address, data=b"spans", method="POST")
        for _ in range(2):
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
