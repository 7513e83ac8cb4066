"""The hot path: one parsed request in, one ranking out. Knows neither HTTP nor bytes.

Legend: N candidates, K of them returned, T tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec import Struct

from bundle.columns import Column, ListColumn
from bundle.encode import EncodedPart, PartEncoder
from bundle.errors import UnknownFeature, ValueInvalid
from fusion.errors import ForceError, InputInvalid
from fusion.explain import Explanation
from fusion.fuse import CompiledPolicy, Needs, Ranked
from fusion.live import Decision
from fusion.signals import NO_CANDIDATES, Candidates, Probabilities
from service.admission import Deadline
from service.drift import Drift
from service.engine import Predicted
from service.errors import PolicyFailed, translated
from service.items import ItemInput
from service.logs import EXPOSURES, fields
from service.metrics import Metrics
from service.record import Record
from service.snapshot import Snapshot
from service.wire.document import OneRow
from service.wire.request import RankRequest, RawColumn, first_value, numbers, plain

_EXPOSURES = logging.getLogger(EXPOSURES)
_TYPED = frozenset({Column, ListColumn})
GROUP = "group"
"""The key of rerank rules that a candidate's `group` gives."""


class Ranking(Struct, frozen=True):
    """An ordered feed and everything that led to it.

    Attributes:
        request: what was asked.
        snapshot: the model and config that answered.
        decision: the policy that ordered, and the user's variants.
        ranked: candidate indices from the first position on, and all scores in input order.
        predicted: the model's probabilities in input order; None for a fallback order.
        missing_features: feature values that the request lacked, over all rows.
        explanation: how each score and position came about, where the request asks.
        degraded: why the order is not the policy's, or None.
    """

    request: RankRequest
    snapshot: Snapshot
    decision: Decision
    ranked: Ranked
    predicted: Predicted | None
    missing_features: int
    explanation: Explanation | None = None
    degraded: str | None = None


class Ranker:
    """Ranks requests; shared by threads."""

    def __init__(self, metrics: Metrics, *, log_exposures: bool = True) -> None:
        """Keep where to count."""
        self._metrics = metrics
        self._log_exposures = log_exposures
        self._drift = Drift(metrics)

    def rank(
        self, request: RankRequest, snapshot: Snapshot, deadline: Deadline, record: Record | None = None
    ) -> Ranking:
        """Return the ranking of a request by one snapshot; its stages are noted in `record`.

        Raises:
            RequestRefused, DeadlineExceeded, ModelFailed: see `service.errors`.
        """
        stage = (record or Record(self._metrics)).stage
        with stage("features"):
            user_part, items = encode(request, snapshot)
            missing_features = self._count(user_part, items)
            decision = decide(request, snapshot)
        deadline.check("predict")
        with stage("predict"):
            predicted = predict(snapshot, user_part, items)
        with stage("fuse"):
            ranked, explanation = fuse(request, decision.policy, predicted)
        return Ranking(request, snapshot, decision, ranked, predicted, missing_features, explanation)

    def note(self, ranking: Ranking) -> None:
        """Count and log which variants and draws took part, count what the rules could not do; once per answer."""
        ranked, exposures = ranking.ranked, ranking.decision.exposures
        for e in exposures:
            self._metrics.exposures.labels(e.layer, e.experiment, e.phase, e.variant, str(e.forced).lower()).inc()
        for rule in ranked.skipped:
            self._metrics.rules_skipped.labels(rule).inc()
        if ranked.broken_caps:
            self._metrics.broken_caps.inc(ranked.broken_caps)
        self._drift.note(ranking)
        if self._log_exposures and (exposures or ranked.propensity_N is not None):
            _EXPOSURES.info("exposed", extra=fields(**exposure_of(ranking)))

    def _count(self, user_part: EncodedPart, items: ItemInput) -> int:
        """Count where candidates' features come from and what they lack; return how many values are missing."""
        self._metrics.note_sources(items.sources)
        self._metrics.note_rows("request", 1, user_part.missing)
        self._metrics.note_rows("item", items.rows, items.missing)
        return sum(user_part.missing.values()) + sum(items.missing.values())


def exposure_of(ranking: Ranking) -> dict[str, object]:
    """Return what the log says of who was ranked with which variants and draws, by which model and config."""
    request, snapshot = ranking.request, ranking.snapshot
    document: dict[str, object] = {
        "request_id": request.request_id,
        "user_id": request.user_id,
        "model": snapshot.model.name,
        "model_version": str(snapshot.model.version),
        "config_version": snapshot.fusion.version,
        "exposures": ranking.decision.exposures,
    }
    if ranking.ranked.propensity_N is not None:
        document["explored"] = explored(ranking)
    return document


def explored(ranking: Ranking) -> list[dict[str, object]]:
    """Return the returned candidates that exploration drew, with their positions and propensities."""
    propensity_N, ids = ranking.ranked.propensity_N, ranking.request.ids
    assert propensity_N is not None
    placed = enumerate(ranking.ranked.order_K.tolist(), start=1)
    return [
        {"id": ids[row], "position": position, "propensity": float(propensity_N[row])}
        for position, row in placed
        if propensity_N[row] < 1
    ]


def encode(request: RankRequest, snapshot: Snapshot) -> tuple[EncodedPart, ItemInput]:
    """Return the model input of a request: its one user and context row, and its N candidates.

    Raises:
        FeatureInvalid: an unknown feature, one on the wrong side, or a value that its encoding refuses.
        ModelFailed: no rows can be made of candidates' features.
    """
    encoder = snapshot.model.encoder
    where = "user.features"
    try:
        request_part = _request_row(request, snapshot)
        if request_part is None:
            check_side(snapshot, "user", request.user)
            columns = dict(typed(encoder.request, request.user))
            where = "context"
            check_side(snapshot, "context", request.context)
            columns |= typed(encoder.request, request.context)
            request_part = encoder.request.encode(columns, 1)
        where = "candidates"
        return request_part, snapshot.model.items.encode(request.ids, typed(encoder.item, request.items))
    except ValueInvalid as exc:
        raise translated(exc, where) from exc


def _request_row(request: RankRequest, snapshot: Snapshot) -> EncodedPart | None:
    """Return the model input of user and context; None where they come typed, or not all of it is right."""
    if not (isinstance(request.user, OneRow) and isinstance(request.context, OneRow)):
        return None
    user, context, sides = request.user.values_by_name, request.context.values_by_name, snapshot.sides
    if not (user.keys() <= sides["user"] and context.keys() <= sides["context"]):
        return None
    return snapshot.model.encoder.request.encode_row({**user, **context})


def predict(snapshot: Snapshot, user_part: EncodedPart, items: ItemInput) -> Predicted:
    """Return the probabilities of the candidates, by their rows where there are any.

    Raises:
        ModelFailed: the run failed, or an output is not finite.
    """
    if items.rows_NB is not None:
        return snapshot.model.engine.predict_rows(user_part, items.rows_NB)
    assert items.features is not None
    return snapshot.model.engine.predict(user_part, items.features)


def check_side(snapshot: Snapshot, side: str, columns: Mapping[str, RawColumn]) -> None:
    """Check that features stand on the side of the request that the schema gives them.

    Raises:
        UnknownFeature: one does not.
    """
    known = snapshot.sides[side]
    if unknown := columns.keys() - known:
        names = ", ".join(sorted(known)[:20])
        expected = f"one of {names}" if names else f"none: the model has no {side} features"
        raise UnknownFeature(f"feature {min(unknown)!r}", found=f"no {side} feature", expected=expected)


def typed(encoder: PartEncoder, columns: Mapping[str, RawColumn]) -> Mapping[str, Column | ListColumn]:
    """Return typed columns; Python values are converted, typed ones kept."""
    if _TYPED.issuperset(map(type, columns.values())):
        return columns  # type: ignore[return-value]  # all of them are
    ready = {name: column for name, column in columns.items() if isinstance(column, Column | ListColumn)}
    raw = {name: column for name, column in columns.items() if not isinstance(column, Column | ListColumn)}
    return ready | encoder.columns_from_python(raw) if raw else ready


def decide(request: RankRequest, snapshot: Snapshot) -> Decision:
    """Return the request's policy and variants; conditions read its user and context features.

    Raises:
        VariantRefused: a forced variant that does not exist or may not be forced.
    """
    attributes: dict[str, object] = {}
    if snapshot.fusion.assigner.targets:
        attributes = {name: first_value(column) for name, column in {**request.user, **request.context}.items()}
    try:
        return snapshot.fusion.decide(request.user_id, attributes, request.force_variant, privileged=request.privileged)
    except ForceError as exc:
        raise translated(exc, "$.force_variant") from exc


def fuse(request: RankRequest, policy: CompiledPolicy, predicted: Predicted) -> tuple[Ranked, Explanation | None]:
    """Return the order by a policy, explained where the request asks.

    Raises:
        PolicyFailed: a score is not finite.
    """
    probabilities = Probabilities(predicted.p_NT, predicted.p_joint_NT, predicted.p_up_N)
    candidates = NO_CANDIDATES if policy.is_score_alone else known_candidates(request, policy.needs)
    try:
        if request.explain:
            return policy.explain(probabilities, request.top_k, candidates)
        return policy.rank(probabilities, request.top_k, candidates), None
    except InputInvalid as exc:
        raise PolicyFailed(exc.thing, found=exc.found, expected=exc.expected) from exc


def known_candidates(request: RankRequest, needs: Needs) -> Candidates:
    """Return what a policy reads of the candidates: their group, vector, and item features by name."""
    keys = {name: plain(request.items[name]) for name in needs.keys if name in request.items}
    if GROUP in needs.keys and request.groups is not None:
        keys[GROUP] = request.groups
    attributes = {name: numbers(request.items[name]) for name in needs.attributes if name in request.items}
    vectors_ND = request.vectors_ND if needs.vectors else None
    return Candidates(ids=request.ids, keys=keys, attributes=attributes, vectors_ND=vectors_ND, seed=request.request_id)
