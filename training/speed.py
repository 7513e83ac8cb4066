"""How many rows a second one core trains on, and where its time goes: the real loop on made-up rows.

Rows are random with a planted signal, so that every library can be held to an AUC as well. Time is CPU time of this
process between two steps of one epoch, validation and start-up left out: a busy machine slows it little.
Legend: N rows, C code columns, T tasks.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from bundle.features import FeatureSchema
from training.config import RunConfig
from training.dataset import (
    CODES_FILE,
    FEATURES_FILE,
    LABELS_FILE,
    PREPARED_FILE,
    VALUES_FILE,
    PreparedInfo,
    PreparedTask,
    SplitInfo,
    prepared_bytes,
    read_prepared,
)
from training.describe import describe_run
from training.errors import ConfigInvalid
from training.run import create_run
from training.schema import Columns
from training.train import Trainer

Document = dict[str, Any]

FEATURES, EMBEDDING_SIZE, TASKS = 16, 16, 5
RATES = (0.4, 0.1, 0.05, 0.02, 0.02)
MEASURED: dict[str, Any] = {
    "model.experts": 3,
    "model.expert_hidden": (64, 32),
    "training.batch_size": 2048,
    "training.epochs": 1,
    "training.evaluations_per_epoch": 1,
    "training.learning_rate": 2e-3,
}
"""Configuration that is measured unless overridden: the sizes that the other libraries were measured at."""

_SHARES = {"train": 1.0, "validation": 0.05, "test": 0.05}
_FIRST_STEP = 5


@dataclass
class Clock:
    """CPU and wall time at each step."""

    steps: list[tuple[float, float]] = field(default_factory=list)

    def tick(self, done: int, total: int) -> None:
        """Note the time of a step."""
        self.steps.append((time.process_time(), time.perf_counter()))

    def rows_per_s(self, batch_size: int) -> tuple[float, float]:
        """Return rows per second of CPU time and of wall time, from the fifth step on."""
        first, last = self.steps[_FIRST_STEP], self.steps[-1]
        rows = (len(self.steps) - 1 - _FIRST_STEP) * batch_size
        return rows / (last[0] - first[0]), rows / (last[1] - first[1])


def measure(config: RunConfig, rows: int, codes: int, rounds: int, say: Callable[[str], None]) -> Document:
    """Return rows per second (best of `rounds` epochs), validation AUCs and the share of time by operator.

    Args:
        config: of the run; one epoch is trained.
        rows: training rows.
        codes: values of each feature, so embedding rows are `codes` · 16.
        rounds: epochs, each from the start.
        say: takes one line of news per round.

    Raises:
        ConfigInvalid: too few rows for the batch size, or more than one epoch.
    """
    least = (_FIRST_STEP + 2) * config.training.batch_size
    if rows < least or codes < 1 or rounds < 1 or config.training.epochs != 1:
        found = f"{rows} rows, {codes} codes, {rounds} rounds, {config.training.epochs} epochs"
        raise ConfigInvalid("benchmark", found=found, expected=f"at least {least}, 1, 1, and one epoch")
    measured = []
    with tempfile.TemporaryDirectory() as made:
        data = Path(made) / "data"
        write_rows(data, rows, codes, seed=1)
        for number in range(rounds):
            clock = Clock()
            result = _trainer(config, data, Path(made) / f"run-{number}", clock.tick).fit()
            cpu, wall = clock.rows_per_s(config.training.batch_size)
            measured.append({"rows_per_cpu_s": cpu, "rows_per_wall_s": wall, "auc": result["best"]["auc"]})
            say(f"round {number + 1}: {cpu:,.0f} rows per second of CPU, {wall:,.0f} of wall time")
        operators = operator_shares(_trainer(config, data, Path(made) / "profiled", lambda done, total: None))
    best = max(measured, key=lambda found: found["rows_per_cpu_s"])
    return {
        "model": config.model.model_dump(mode="json"),
        "batch_size": config.training.batch_size,
        "rows": rows,
        "codes": codes,
        "threads": torch.get_num_threads(),
        **best,
        "rounds": measured,
        "operators": operators,
    }


def _trainer(config: RunConfig, folder: Path, out: Path, tick: Callable[[int, int], None]) -> Trainer:
    data = read_prepared(folder)
    return Trainer(create_run(out, describe_run(config, data), data.schema), data, lambda news: None, tick)


def operator_shares(trainer: Trainer, steps: int = 20) -> list[Document]:
    """Return each operator's share of the CPU time of some steps, the largest first."""
    batches = trainer.batches.epoch(0)
    for _ in range(_FIRST_STEP):
        trainer.step(next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in itertools.islice(batches, steps):
            trainer.step(batch)
    done = trainer.progress.step - _FIRST_STEP
    events = [(event.key, event.self_cpu_time_total, event.count) for event in profiled.key_averages()]
    total = sum(spent for _, spent, _ in events)
    events.sort(key=lambda event: -event[1])
    return [{"operator": key, "share": spent / total, "calls": count / done} for key, spent, count in events[:14]]


def write_rows(folder: Path, rows: int, codes: int, seed: int) -> None:
    """Write a prepared folder of random rows: codes fall off as a Zipf law, labels follow a planted score."""
    random = np.random.default_rng(seed)
    effects_CK = random.normal(size=(FEATURES, codes + 2)) * 0.4
    mixes_CT = random.normal(size=(FEATURES, TASKS)) * 0.5 + 0.5
    splits = {}
    rates = [0.0] * TASKS
    for name, share in _SHARES.items():
        count = int(rows * share)
        codes_NC = (np.minimum(random.zipf(1.2, (count, FEATURES)), 1 << 40) % codes + 2).astype(np.int32)
        labels_NT = _labels(codes_NC, effects_CK, mixes_CT, random)
        if name == "train":
            rates = labels_NT.mean(0).tolist()
        (folder / name).mkdir(parents=True)
        np.save(folder / name / CODES_FILE, codes_NC)
        np.save(folder / name / VALUES_FILE, np.zeros((count, 0), dtype=np.float32))
        np.save(folder / name / LABELS_FILE, labels_NT)
        splits[name] = SplitInfo(rows=count)
    tasks = tuple(
        PreparedTask(name=f"task{t}", label=f"task{t}", kind="positive", held_out=False, base_rate=rate)
        for t, rate in enumerate(rates)
    )
    info = PreparedInfo(
        source="benchmark",
        input="made up",
        columns=Columns(),
        tasks=tasks,
        splits=splits,
        fingerprint=f"rows {rows}, codes {codes}, seed {seed}",
        schema_file="none",
    )
    (folder / FEATURES_FILE).write_text(_schema(codes).model_dump_json(), "utf-8")
    (folder / PREPARED_FILE).write_bytes(prepared_bytes(info))


def _labels(
    codes_NC: NDArray[np.int32],
    effects_CK: NDArray[np.float64],
    mixes_CT: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    scores_NT = effects_CK[np.arange(FEATURES), codes_NC] @ mixes_CT
    thresholds = np.log(RATES) - np.log1p(-np.array(RATES))
    p_NT = 1 / (1 + np.exp(-(scores_NT + thresholds)))
    labels_NT: NDArray[np.uint8] = (random.random(p_NT.shape) < p_NT).astype(np.uint8)
    return labels_NT


def _schema(codes: int) -> FeatureSchema:
    features = [
        {
            "name": f"feature{c}",
            "side": "user" if c < FEATURES // 2 else "item",
            "kind": "categorical",
            "value_type": "integer",
            "embedding_size": EMBEDDING_SIZE,
            "encoding": {"type": "hash", "buckets": codes},
        }
        for c in range(FEATURES)
    ]
    return FeatureSchema.model_validate({"features": features})
