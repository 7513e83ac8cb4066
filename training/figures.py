"""From an experiment's predictions to its figures: one JSON document, from which text and plots are made.

Legend: S seeds, N pooled test rows, M rows of a measure, R redraws, T tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.oracle import Truth, recovery
from training.bootstrap import bootstrap_aucs, interval, mean_over_seeds
from training.compare import Outcome, TestRows
from training.experiment import Experiment
from training.measured import Measure, measures
from training.metrics import auc, reliability, task_metrics

Document = dict[str, Any]
MEAN = "mean"
"""Name under which the mean over the learned tasks stands beside them."""

BOOTSTRAP_SEED = 20230401
_HISTOGRAM_BINS = 40


def experiment_figures(experiment: Experiment, rows: TestRows, outcomes: dict[str, Outcome]) -> Document:
    """Return every figure of an experiment; numbers that the labels do not define are None."""
    names = [rows.tasks[column] for column in rows.learned]
    measured = measures(rows, experiment.given)
    redrawn = {model: _redrawn(experiment, measured, outcome) for model, outcome in outcomes.items()}
    models = {model: _model_figures(measured, rows, outcome) for model, outcome in outcomes.items()}
    for model, document in models.items():
        _add_intervals(document, redrawn[model], models[experiment.baseline], redrawn[experiment.baseline])
    return {
        "title": experiment.title,
        "paper": experiment.paper,
        "data": [folder.name for folder in experiment.data],
        "baseline": experiment.baseline,
        "seeds": list(experiment.seeds),
        "redraws": experiment.redraws,
        "tuning": None if experiment.tuning is None else experiment.tuning.model_dump(mode="json"),
        "rows": len(rows.labels),
        "users": len(np.unique(rows.users_N)),
        "tasks": {measure.name: int(measure.labels_M.sum()) for measure in measured},
        "given": {
            measure.name: {"rows": len(measure.rows_M), "task": names[measure.task], "parent": names[measure.parent]}
            for measure in measured
            if measure.parent is not None
        },
        "models": models,
    }


def _redrawn(experiment: Experiment, measured: list[Measure], outcome: Outcome) -> dict[str, NDArray[np.float64]]:
    """Return per measure, and for the mean of the tasks, the AUC over redrawn users and seeds [R]."""
    redrawn = {}
    for measure in measured:
        scores_SM = measure.scores(outcome.p_SNT)
        aucs_SR = bootstrap_aucs(measure.labels_M, scores_SM, measure.users_M, experiment.redraws, BOOTSTRAP_SEED)
        redrawn[measure.name] = mean_over_seeds(aucs_SR, BOOTSTRAP_SEED)
    return redrawn | {MEAN: np.mean([redrawn[measure.name] for measure in measured if measure.parent is None], axis=0)}


def _model_figures(measured: list[Measure], rows: TestRows, outcome: Outcome) -> Document:
    tasks: Document = {}
    for measure in measured:
        scores_SM = measure.scores(outcome.p_SNT)
        by_seed = [task_metrics(measure.labels_M, scores_M, measure.users_M) for scores_M in scores_SM]
        tasks[measure.name] = {metric: _mean([figures[metric] for figures in by_seed]) for metric in by_seed[0]}
        tasks[measure.name]["auc_by_seed"] = [figures["auc"] for figures in by_seed]
        curve = reliability(np.tile(measure.labels_M, len(by_seed)), scores_SM.ravel())
        tasks[measure.name]["reliability"] = curve.tolist()
    names = [measure.name for measure in measured if measure.parent is None]
    tasks[MEAN] = {"auc": _mean([tasks[name]["auc"] for name in names])}
    seeds = range(len(outcome.p_SNT))
    tasks[MEAN]["auc_by_seed"] = [_mean([tasks[name]["auc_by_seed"][s] for name in names]) for s in seeds]
    return {
        "learning_rate": outcome.tuned.learning_rate,
        "learning_rate_at_edge": outcome.tuned.is_at_edge,
        "tuning_losses": {f"{rate:g}": loss for rate, loss in outcome.tuned.losses.items()},
        "tasks": tasks,
        "p_up": None if outcome.p_up_SN is None else _p_up_figures(names, rows, outcome, outcome.p_up_SN),
        "recovery": _recovery(rows.truth, outcome.p_up_SN),
        "held_out": _held_out(names, rows, outcome),
    }


def _p_up_figures(names: list[str], rows: TestRows, outcome: Outcome, p_up_SN: NDArray[np.float32]) -> Document:
    any_N = rows.labels[:, list(rows.learned)].max(axis=1)
    counts, _ = np.histogram(p_up_SN, bins=_HISTOGRAM_BINS, range=(0, 1))
    densest = int(np.argmax(rows.labels[:, list(rows.learned)].mean(0)))
    correlations = [
        float(np.corrcoef(up_N, p_NT[:, densest])[0, 1]) for up_N, p_NT in zip(p_up_SN, outcome.p_SNT, strict=True)
    ]
    return {
        "mean": float(np.mean(p_up_SN, dtype=np.float64)),
        "mean_by_seed": [float(np.mean(up_N, dtype=np.float64)) for up_N in p_up_SN],
        "auc_any": _mean([auc(any_N, up_N) for up_N in p_up_SN]),
        "correlation_with": names[densest],
        "correlation": _mean(correlations),
        "histogram": (counts / p_up_SN.size).tolist(),
    }


def _recovery(truth: Truth | None, p_up_SN: NDArray[np.float32] | None) -> Document | None:
    if truth is None or p_up_SN is None:
        return None
    by_seed = [recovery(up_N, truth).to_dict() for up_N in p_up_SN]
    means = {name: _mean([figures[name] for figures in by_seed]) for name in by_seed[0]}
    return means | {"by_seed": by_seed}


def _held_out(names: list[str], rows: TestRows, outcome: Outcome) -> Document:
    """Return, per task that no model learned, the AUC of 1 − P(UP) and of each 1 − P(task) against it."""
    document: Document = {}
    for column, task in enumerate(rows.tasks):
        if column in rows.learned:
            continue
        labels_N = rows.labels[:, column]
        scores = {f"1 − P({name})": 1 - outcome.p_SNT[:, :, index] for index, name in enumerate(names)}
        if outcome.p_up_SN is not None:
            scores = {"1 − P(UP)": 1 - outcome.p_up_SN} | scores
        aucs = {name: _mean([auc(labels_N, score_N) for score_N in score_SN]) for name, score_SN in scores.items()}
        document[task] = {"positives": int(labels_N.sum()), "auc": aucs}
    return document


def _add_intervals(
    document: Document,
    redrawn: dict[str, NDArray[np.float64]],
    baseline: Document,
    redrawn_baseline: dict[str, NDArray[np.float64]],
) -> None:
    for name, figures in document["tasks"].items():
        known = figures["auc"] is not None
        figures["auc_interval"] = interval(redrawn[name]) if known else None
        figures["gain"] = figures["auc"] - baseline["tasks"][name]["auc"] if known else None
        figures["gain_interval"] = interval(redrawn[name] - redrawn_baseline[name]) if known else None


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
