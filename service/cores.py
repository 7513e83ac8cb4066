"""How many cores this process may use: a machine may have more than a container is given."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Quota and period of CPU time in microseconds, or "max" for no quota (Linux, cgroup v2)."""


def usable_cores(limit: Path = CGROUP_LIMIT) -> int:
    """Return the cores that the process is allowed on, or that its quota pays for in full if fewer; 1 at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limit.read_text("ascii").split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or no quota
        pass
    return max(1, cores)
