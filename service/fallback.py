"""What is answered when the model or the policy cannot: an order that needs neither, and says so."""

from __future__ import annotations

import numpy as np

from fusion.formulas import order_by_score
from fusion.fuse import Ranked
from service.ranker import Ranking, decide
from service.snapshot import Snapshot
from service.wire.request import RankRequest, numbers


def fall_back(request: RankRequest, snapshot: Snapshot, reason: str, feature: str | None) -> Ranking:
    """Return the request's candidates by an item feature, descending, or in input order.

    Args:
        request: what was asked.
        snapshot: what would have answered.
        reason: told in the answer's `degraded`.
        feature: a numeric item feature, the prior; None or a request without it gives input order. Candidates
            without a value come last.
    """
    score_N = np.zeros(len(request.ids))
    if feature is not None and feature in request.items:
        given_N = numbers(request.items[feature])
        known = np.isfinite(given_N)
        lowest = given_N[known].min() if known.any() else 0.0
        score_N = np.where(known, given_N, lowest - 1.0)
    ranked = Ranked(order_by_score(score_N)[: request.top_k], score_N)
    return Ranking(request, snapshot, decide(request, snapshot), ranked, None, 0, degraded=reason)
