"""The hot path: one parsed request in, one ranking out. Knows neither HTTP nor bytes.

Legend: N candidates, K of them returned, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from bundle.encode import EncodedPart, PartEncoder
from bundle.errors import UnknownFeature, ValueInvalid
from fusion.signals import Candidates, Probabilities
from service.admission import Deadline
from service.engine import Predicted
from service.errors import translated
from service.metrics import Metrics
from service.snapshot import Snapshot
from service.wire.request import RankRequest, RawColumn


@dataclass(frozen=True)
class Ranking:
    """An ordered feed and everything that led to it.

    Attributes:
        request: what was asked.
        snapshot: the model and config that answered.
        order_K: candidate indices from the first position on.
        score_N: fused scores in input order, float64.
        predicted: the model's probabilities in input order.
        missing_features: feature values that the request lacked, over all rows.
        degraded: why the order is not the policy's, or None.
    """

    request: RankRequest
    snapshot: Snapshot
    order_K: NDArray[np.intp]
    score_N: NDArray[np.float64]
    predicted: Predicted
    missing_features: int
    degraded: str | None = None


class Ranker:
    """Ranks requests; shared by threads."""

    def __init__(self, metrics: Metrics) -> None:
        """Keep where to count."""
        self._metrics = metrics

    def rank(self, request: RankRequest, snapshot: Snapshot, deadline: Deadline) -> Ranking:
        """Return the ranking of a request by one snapshot.

        Raises:
            RequestRefused, DeadlineExceeded, ModelFailed: see `service.errors`.
        """
        stage = self._metrics.stage
        with stage("features"):
            user_part, item_part = encode(request, snapshot)
            missing_features = self._count_missing(user_part, item_part)
        deadline.check("predict")
        with stage("predict"):
            predicted = snapshot.model.engine.predict(user_part, item_part)
        with stage("fuse"):
            policy = snapshot.policies[snapshot.config.default]
            probabilities = Probabilities(predicted.p_NT, predicted.p_joint_NT, predicted.p_up_N)
            ranked = policy.rank(probabilities, request.top_k, known_candidates(request))
        return Ranking(request, snapshot, ranked.order_K, ranked.score_N, predicted, missing_features)

    def _count_missing(self, *parts: EncodedPart) -> int:
        """Count the values that a request lacked, by feature; return how many."""
        total = 0
        for part, name in zip(parts, ("request", "item"), strict=True):
            self._metrics.rows.labels(name).inc(len(part.codes_NC))
            for feature, rows in part.missing.items():
                self._metrics.missing.labels(feature).inc(rows)
                total += rows
        return total


def encode(request: RankRequest, snapshot: Snapshot) -> tuple[EncodedPart, EncodedPart]:
    """Return the model input of a request: its one user and context row, and its N item rows.

    Raises:
        FeatureInvalid: an unknown feature, one on the wrong side, or a value that its encoding refuses.
    """
    encoder = snapshot.model.encoder
    where = "user.features"
    try:
        check_side(snapshot, "user", request.user)
        columns = typed(encoder.request, request.user)
        where = "context"
        check_side(snapshot, "context", request.context)
        columns |= typed(encoder.request, request.context)
        request_part = encoder.request.encode(columns, 1)
        where = "candidates"
        return request_part, encoder.item.encode(typed(encoder.item, request.items), len(request.ids))
    except ValueInvalid as exc:
        raise translated(exc, where) from exc


def check_side(snapshot: Snapshot, side: str, columns: Mapping[str, RawColumn]) -> None:
    """Check that features stand on the side of the request that the schema gives them.

    Raises:
        UnknownFeature: one does not.
    """
    known = {feature.name for feature in snapshot.model.encoder.schema.features if feature.side == side}
    if unknown := columns.keys() - known:
        expected = f"a {side} feature: {', '.join(sorted(known)[:20]) or 'the model has none'}"
        raise UnknownFeature(f"feature {min(unknown)!r}", found=f"no {side} feature", expected=expected)


def typed(encoder: PartEncoder, columns: Mapping[str, RawColumn]) -> dict[str, Column | ListColumn]:
    """Return typed columns; Python values are converted, typed ones kept."""
    ready = {name: column for name, column in columns.items() if isinstance(column, Column | ListColumn)}
    raw = {name: column for name, column in columns.items() if not isinstance(column, Column | ListColumn)}
    return ready | encoder.columns_from_python(raw) if raw else ready


def known_candidates(request: RankRequest) -> Candidates:
    """Return what fusion may know of the candidates."""
    keys = {} if request.groups is None else {"group": request.groups}
    return Candidates(ids=request.ids, keys=keys, seed=request.request_id)
