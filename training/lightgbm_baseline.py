"""Gradient-boosted trees on prepared data: what tabular learning without networks gets from the same rows.

One binary model per task, early stopping on validation AUC, scored on test. A development tool (the package
`lightgbm` comes with the dev extra); knows nothing of DLEN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.features import CategoricalFeature, QuantileEncoding
from training.dataset import Prepared, Split
from training.errors import ConfigInvalid
from training.metrics import task_metrics

CATEGORICAL_CODES = 256
"""Categorical features with at most this many codes are given as such, the rest in order of their codes."""

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "metric": "auc",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
    "deterministic": True,
}


def run_lightgbm(
    prepared: Prepared,
    *,
    seed: int = 1,
    threads: int = 1,
    rounds: int = 500,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Return test metrics per task that is not held out: {"rows": n, "tasks": {name: {"auc": …, "rounds": n}}}.

    Raises:
        ConfigInvalid: lightgbm is not installed.
    """
    splits = {name: prepared.split(name) for name in ("train", "validation", "test")}
    inputs = {name: _inputs(split) for name, split in splits.items()}
    categorical = _categorical_columns(prepared)
    learned = [(index, task.name) for index, task in enumerate(prepared.tasks) if not task.held_out]
    results: dict[str, Any] = {}
    for done, (index, name) in enumerate(learned):
        labels = {split: np.asarray(splits[split].labels[:, index]) for split in splits}
        scores, best = _fit(inputs, labels, categorical, PARAMETERS | {"seed": seed, "num_threads": threads}, rounds)
        results[name] = task_metrics(labels["test"], scores, splits["test"].user) | {"rounds": best}
        if progress is not None:
            progress(name, done + 1, len(learned))
    return {"model": "lightgbm", "seed": seed, "split": "test", "rows": splits["test"].rows, "tasks": results}


def _inputs(split: Split) -> NDArray[np.float32]:
    return np.hstack([np.asarray(split.codes, dtype=np.float32), np.asarray(split.values)])


def _categorical_columns(prepared: Prepared) -> list[int]:
    """Return the columns that hold unordered codes, few enough to be split as sets."""
    columns, at = [], 0
    for part in (prepared.encoder.request, prepared.encoder.item):
        for feature in part.code_features:
            few = isinstance(feature, CategoricalFeature) and feature.encoding.codes <= CATEGORICAL_CODES
            if few and not isinstance(feature.encoding, QuantileEncoding):
                columns.append(at)
            at += feature.columns
    return columns


def _fit(
    inputs: dict[str, NDArray[np.float32]],
    labels: dict[str, NDArray[np.uint8]],
    categorical: list[int],
    parameters: dict[str, Any],
    rounds: int,
) -> tuple[NDArray[np.float64], int]:
    """Return the test probabilities of one task, and the number of trees."""
    try:
        import lightgbm
    except ModuleNotFoundError as exc:
        raise ConfigInvalid("lightgbm", found="not installed", expected="the dev extra (make install)") from exc
    train = lightgbm.Dataset(inputs["train"], labels["train"], categorical_feature=categorical)
    held_back = lightgbm.Dataset(inputs["validation"], labels["validation"], reference=train)
    stop = lightgbm.early_stopping(40, verbose=False)
    booster = lightgbm.train(parameters, train, rounds, valid_sets=[held_back], callbacks=[stop])
    scores = np.asarray(booster.predict(inputs["test"]), dtype=np.float64)
    return scores, int(booster.best_iteration)
