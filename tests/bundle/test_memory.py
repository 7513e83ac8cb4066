"""Memory that is freed and taken again: page faults of a fresh process with and without `keep_freed_memory`."""

from __future__ import annotations

import subprocess
import sys

_TAKEN_AND_FREED = """
import resource, sys
import numpy as np
from bundle.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory(1 << 28)

def faults_of_ten_rounds():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [np.ones(1 << 20, dtype=np.float64) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_ten_rounds()
print(faults_of_ten_rounds())
"""


def _faults(how: str) -> int:
    ran = subprocess.run([sys.executable, "-c", _TAKEN_AND_FREED, how], capture_output=True, text=True, check=True)
    return int(ran.stdout)


def test_kept_blocks_are_not_faulted_in_again() -> None:
    """Ten rounds of three blocks of 8 MiB are 61,440 pages of 4 KiB (120 of 2 MiB where the kernel uses those)."""
    given_back, kept = _faults("given back"), _faults("kept")
    assert given_back >= 60
    assert kept <= given_back / 10
