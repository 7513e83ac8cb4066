"""How the C library's allocator treats memory that a process frees and takes again at once."""

from __future__ import annotations

import ctypes

LARGEST_KEPT_BYTES = 32 << 20
"""Largest block that is kept for reuse: glibc's own bound of M_MMAP_THRESHOLD on 64-bit machines."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory(most_bytes: int) -> bool:
    """Let this process keep up to `most_bytes` of freed memory; return whether its C library can (glibc's can).

    By default glibc returns large blocks to the kernel when they are freed, and arrays of some MiB that each request
    or step makes anew are then page by page faulted in and zeroed again: 6 % of a request of 2,000 candidates, 27 of
    235 ms of a training step at the paper's sizes (docs/decisions.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, most_bytes))
