"""Where predictions and scores lie, counted by bins, so that their drift from the bundle's reference shows.

Every eighth ranking is counted: shares need no more, and it costs a fiftieth of a request's time or less.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from bundle.manifest import P_UP
from bundle.reference import BINS, bin_counts
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.models import LoadedModel
    from service.ranker import Ranking

ONE_IN = 8
SCORE_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SCORE_BINS = (*(f"{edge:g}" for edge in SCORE_EDGES), "inf")


class Drift:
    """Counts predictions by model version, task and bin."""

    def __init__(self, metrics: Metrics) -> None:
        """Count nothing yet."""
        self._metrics = metrics
        self._seen = itertools.count()

    def note(self, ranking: Ranking) -> None:
        """Count a ranking's predictions and scores, or leave it out; a fallback order has none."""
        predicted = ranking.predicted
        if next(self._seen) % ONE_IN or predicted is None or not len(predicted.p_NT):
            return
        model = ranking.snapshot.model
        labels, tasks = (model.name, str(model.version)), model.manifest.task_names
        for task, counts in zip(tasks, bin_counts(predicted.p_NT), strict=True):
            self._add(labels, task, counts.tolist())
        if predicted.p_up_N is not None:
            self._add(labels, P_UP, bin_counts(predicted.p_up_N[:, None])[0].tolist())
        scores = bin_counts(np.asarray(ranking.ranked.score_N)[:, None], SCORE_EDGES)[0].tolist()
        for name, count in zip(SCORE_BINS, scores, strict=True):
            if count:
                self._metrics.scores.labels(*labels, name).inc(count)

    def _add(self, labels: tuple[str, str], task: str, counts: list[int]) -> None:
        for name, count in zip(BINS, counts, strict=True):
            if count:
                self._metrics.probabilities.labels(*labels, task, name).inc(count)


def show_reference(metrics: Metrics, model: LoadedModel) -> None:
    """Show a model's reference, and its counters at 0, so that an empty bin is told from an unknown one."""
    labels = (model.name, str(model.version))
    for task in model.manifest.tasks:
        for at, name in enumerate(BINS):
            metrics.probabilities.labels(*labels, task.name, name)
            if task.reference_shares is not None:
                metrics.reference.labels(*labels, task.name, name).set(task.reference_shares[at])
