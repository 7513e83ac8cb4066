"""How soon after a burst answers are as they were before it: by the share that is answered, and by p99.

Knows nothing of what a burst is made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.drive import Outcome

WINDOW_S, STEP_S = 1.0, 0.25
STAYS_S = 2.0
"""So long all must be as before for it to count: one good moment is not enough, and one bad one later is another's."""
SLACK_SHARE, SLACK_MS, SLACK_FAILED = 0.25, 5.0, 0.005
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Recovery:
    """What a burst left behind.

    Attributes:
        seconds: from the burst's end until all was as before; infinite where it never was.
        before_ms: highest p99 of a window before the burst; after_ms: of those once it was as before.
    """

    seconds: float
    before_ms: float
    after_ms: float


def recovery_of(outcome: Outcome, burst_s: float, end_s: float) -> Recovery:
    """Return how soon after `end_s` windows of requests are as those before `burst_s`.

    As before means: of the answers no smaller a share 2xx than in the worst window before (or .5 % less), and a p99 no
    higher than the highest before and a quarter (or 5 ms) more; and for two seconds on end.
    """
    before = _windows(outcome, min(_SETTLE_S, burst_s / 2), burst_s)
    after = _windows(outcome, end_s, float(outcome.send_ns[-1]) / 1e9)
    if not before or not after:
        return Recovery(float("inf"), float("nan"), float("nan"))
    worst_ms, least = max(p99 for _, p99, _ in before), min(share for _, _, share in before)
    limit_ms = worst_ms + max(SLACK_SHARE * worst_ms, SLACK_MS)
    normal = [p99 <= limit_ms and share >= least - SLACK_FAILED for _, p99, share in after]
    need = round(STAYS_S / STEP_S)
    for first in range(len(after)):
        stretch = normal[first : first + need]
        if all(stretch) and len(stretch) == min(need, len(after)):
            later_ms = max(p99 for _, p99, _ in after[first : first + need])
            return Recovery(after[first][0] - end_s, worst_ms, later_ms)
    return Recovery(float("inf"), worst_ms, max(p99 for _, p99, _ in after))


def _windows(outcome: Outcome, start_s: float, end_s: float) -> list[tuple[float, float, float]]:
    """Return start, p99 of 2xx in ms, and share of 2xx of each window that lies wholly between two times."""
    found = []
    for start in np.arange(start_s, end_s - min(WINDOW_S, end_s - start_s) + 1e-9, STEP_S).tolist():
        low, high = np.searchsorted(outcome.send_ns, (start * 1e9, (start + WINDOW_S) * 1e9))
        status = outcome.status[low:high]
        good = (status >= 200) & (status < 300)
        if len(status):
            latency_ms = outcome.latency_ns[low:high][good] / 1e6
            p99 = float(np.percentile(latency_ms, 99)) if good.any() else float("inf")
            found.append((start, p99, float(good.mean())))
    return found
