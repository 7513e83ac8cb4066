"""Where predictions and scores lie, counted by bins, so that their drift from the bundle's reference shows.

Every eighth ranking is counted: shares need no more, and it costs a fiftieth of a request's time or less.
"""

from __future__ import annotations

import itertools
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from bundle.manifest import P_UP
from bundle.reference import BINS, bin_counts
from service.metrics import Metrics
from service.versioned import Labels, Series

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
        self._versioned = metrics.versioned
        self._seen = itertools.count()
        self._adding = Lock()

    def note(self, ranking: Ranking) -> None:
        """Count a ranking's predictions and scores, or leave it out; a fallback order has none."""
        predicted = ranking.predicted
        if next(self._seen) % ONE_IN or predicted is None or not len(predicted.p_NT):
            return
        counts = self._versioned.values(_key(ranking.snapshot.model.name, str(ranking.snapshot.model.version)))
        if counts is None:
            return  # a version so old that it is shown no more
        parts = [bin_counts(predicted.p_NT)]
        if predicted.p_up_N is not None:
            parts.append(bin_counts(predicted.p_up_N[:, None]))
        parts.append(bin_counts(np.asarray(ranking.ranked.score_N)[:, None], SCORE_EDGES))
        counts_K = np.asarray(counts)  # shares memory
        with self._adding:
            counts_K += np.concatenate([part.ravel() for part in parts])


def show_distributions(metrics: Metrics, model: LoadedModel) -> None:
    """Show a model's reference, and its counters from 0, so that an empty bin is told from an unknown one."""
    labels = (model.name, str(model.version))
    tasks = [*model.manifest.task_names, *([P_UP] if model.manifest.has_latent else [])]
    series: list[Series] = [("dlen_model_probabilities", (*labels, task, name)) for task in tasks for name in BINS]
    series += [("dlen_rank_scores", (*labels, name)) for name in SCORE_BINS]
    metrics.versioned.count(_key(*labels), series)
    reference: dict[Series, float] = {
        ("dlen_model_reference_share", (*labels, task.name, name)): share
        for task in model.manifest.tasks
        if task.reference_shares is not None
        for name, share in zip(BINS, task.reference_shares, strict=True)
    }
    metrics.versioned.show(_reference_key(*labels), reference)


def show_distributions_no_more(metrics: Metrics, name: str, version: str) -> None:
    """Forget a version's distributions; a process that lives long sees many versions."""
    metrics.versioned.drop(_key(name, version))
    metrics.versioned.drop(_reference_key(name, version))


def _key(name: str, version: str) -> Labels:
    return ("distributions", name, version)


def _reference_key(name: str, version: str) -> Labels:
    return ("reference", name, version)
