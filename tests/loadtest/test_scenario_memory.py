"""Scenario memory: what its checks judge."""

from __future__ import annotations

import pytest

from loadtest.scenarios import memory


@pytest.mark.parametrize(
    ("one_mb", "four_mb", "bundles_mb", "passed"),
    [
        (1100.0, 1400.0, 1050.0, [True, True]),
        (1100.0, 1450.0, 1050.0, [False, False]),
        (1200.0, 1480.0, 1050.0, [True, True]),
        (100.0, 380.0, 2.0, [True]),  # little to share: no times of one
    ],
)
def test_memory_judges_what_further_workers_add(one_mb, four_mb, bundles_mb, passed):
    assert passed == [check.passed for check in memory.checks(one_mb, four_mb, bundles_mb)]
