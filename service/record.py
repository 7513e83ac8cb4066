"""What is noted of one request on its way, for its log line, its spans and its answer's headers."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from msgspec import Struct, field

from service.metrics import Metrics
from service.tally import Stage, Stages

if TYPE_CHECKING:
    from service.ranker import Ranking
    from service.snapshot import Snapshot

PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Routes that are asked all day long; they have neither log lines nor spans."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Record(Struct):
    """Filled by whoever handles the request; read once it is answered.

    Attributes:
        metrics: where stages are timed too.
        traceparent: the W3C trace context that the caller gave, or our own span's; empty where there is none.
        request_id: the request's id, once it is known.
        stages: name, start and end of each stage, on the clock of `time.perf_counter`.
        candidates: how many there are to rank.
        snapshot: the model and config that answer.
        ranking: the ranking, unless the answer is a fallback order or an error.
        degraded: why the order is not the policy's.
        problem: slug of the error that the answer tells.
        error: what a failure inside found, which the answer does not tell.
    """

    metrics: Metrics
    traceparent: str = ""
    request_id: str = ""
    stages: Stages = field(default_factory=list)
    candidates: int | None = None
    snapshot: Snapshot | None = None
    ranking: Ranking | None = None
    degraded: str | None = None
    problem: str | None = None
    error: str | None = None

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage, whether it succeeds or fails."""
        return Stage(name, self.stages, self.metrics.seconds_of_stage(name))

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id, if there is one."""
        found = _TRACEPARENT.fullmatch(self.traceparent)
        return found[1] if found else None
