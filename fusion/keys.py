"""Candidates' keys, such as authors, as whole numbers, and candidates side by side that share one.

Knows nothing of rules. Shapes: N candidates, M of them in some order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]


def encode_keys(values: Sequence[Any] | NDArray[Any]) -> Ints:
    """Return a whole number per value, equal for equal values; every None is a key of its own."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.intp, copy=False)
    distinct = dict.fromkeys(values)
    number_of = dict(zip(distinct, range(len(distinct)), strict=True))
    codes_N = np.fromiter(map(number_of.__getitem__, values), dtype=np.intp, count=len(values))
    if None in number_of:
        nobody_N = codes_N == number_of[None]
        codes_N[nobody_N] = len(number_of) + np.arange(np.count_nonzero(nobody_N))
    return codes_N


def group_by_code(codes_M: Ints) -> tuple[Ints, Ints]:
    """Return the places, those of one code side by side and in order, and where each code's begin there."""
    small = len(codes_M) > 0 and codes_M.min() >= 0 and codes_M.max() < 1 << 16
    # numpy sorts numbers of two bytes by radix, three times as fast
    by_code = np.argsort(codes_M.astype(np.uint16) if small else codes_M, kind="stable")
    sorted_M = codes_M[by_code]
    starts = np.flatnonzero(sorted_M[1:] != sorted_M[:-1]) + 1
    return by_code, np.concatenate([np.zeros(min(1, len(codes_M)), dtype=np.intp), starts])
