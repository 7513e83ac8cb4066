"""When requests are meant to be sent: fixed before the first one goes out, whatever the server does (open loop).

Knows nothing of sending.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import PlanInvalid

Arrivals = Literal["poisson", "constant"]
MAX_REQUESTS = 20_000_000
"""A run keeps about 50 bytes a request in memory; a longer test is split."""


def send_times_ns(
    rate_per_s: float, duration_s: float, arrivals: Arrivals, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return rising send times in nanoseconds from the start, all below the duration, int64[requests].

    `poisson`: independent arrivals, as from many users; their number varies around rate × duration.
    `constant`: evenly spaced; the number is rate × duration, rounded up.

    Raises:
        PlanInvalid: the rate or the duration is not a positive number, or there are too many requests.
    """
    for name, value in (("rate", rate_per_s), ("duration", duration_s)):
        if not (math.isfinite(value) and value > 0):
            raise PlanInvalid(name, found=value, expected="a positive number")
    mean = rate_per_s * duration_s
    if mean > MAX_REQUESTS:
        raise PlanInvalid("rate × duration", found=f"{mean:.3g}", expected=f"at most {MAX_REQUESTS} requests")
    if arrivals == "constant":
        times_s = np.arange(math.ceil(mean)) / rate_per_s
    else:
        times_s = np.sort(rng.random(rng.poisson(mean))) * duration_s
    times_ns = (times_s * 1e9).astype(np.int64)
    return times_ns[times_ns < int(duration_s * 1e9)]
