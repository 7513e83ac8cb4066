"""How many workers there are when nobody says."""

from __future__ import annotations

import os

import pytest

from service.cores import usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000\n", CORES),
        (f"{(CORES + 3) * 100000} 100000\n", CORES),
        ("100000 100000\n", 1),
        ("150000 100000\n", 1),  # a second worker would be stopped for half of each period
        ("20000 100000\n", 1),
        ("nonsense\n", CORES),
    ],
)
def test_a_quota_of_cpu_time_counts_where_it_is_below_the_cores(tmp_path, limit, expected):
    file = tmp_path / "cpu.max"
    file.write_text(limit)
    assert usable_cores(file) == expected


def test_without_a_control_group_the_cores_count_that_the_process_is_allowed_on(tmp_path):
    assert usable_cores(tmp_path / "none") == CORES
