"""Carries an experiment out: tunes each model, trains it once per folder and seed, predicts the test rows.

Runs lie below the experiment's folder: runs/MODEL/DATA/lr-RATE (tuning) and runs/MODEL/DATA/seed-S-lr-RATE.
A finished run is taken as it is, a killed one goes on where it stood. Legend: S seeds, N pooled test rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import from_numpy

from simulator.oracle import Truth
from training.config import RunConfig
from training.dataset import ROW_USER, Prepared, read_prepared
from training.describe import describe_run
from training.errors import ConfigInvalid
from training.experiment import Experiment
from training.predict import Predictions, predict
from training.recovery import truth_of
from training.run import Run, create_run
from training.tensors import read_tensors, write_tensors
from training.train import Trainer

RUNS_FOLDER = "runs"
PREDICTIONS_FILE = "test.safetensors"
Report = Callable[[str], None]
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuned:
    """How a model got its learning rate: the validation loss of each rate that was tried, none without tuning."""

    learning_rate: float
    losses: dict[float, float]

    @property
    def is_at_edge(self) -> bool:
        """Whether a rate outside the grid might have been better still."""
        rates = sorted(self.losses)
        return len(rates) > 1 and self.learning_rate in (rates[0], rates[-1])


@dataclass(frozen=True)
class Outcome:
    """A model's predictions of the pooled test rows: p_SNT; p_up_SN None without the latent state."""

    tuned: Tuned
    p_SNT: NDArray[np.float32]
    p_up_SN: NDArray[np.float32] | None


@dataclass(frozen=True)
class TestRows:
    """The pooled test rows: labels of all tasks [N, all tasks] and user numbers [N], the same person across folders.

    Attributes:
        tasks: names of the label columns.
        learned: the columns of the tasks that are learned.
        truth: of simulated rows; None where it is not known.
    """

    __test__ = False  # not a class of tests

    tasks: tuple[str, ...]
    learned: tuple[int, ...]
    labels: NDArray[np.uint8]
    users_N: NDArray[np.int64]
    truth: Truth | None


@dataclass(frozen=True)
class _Job:
    model: str
    data: Prepared
    config: RunConfig
    folder: Path


class Comparison:
    """One experiment in one output folder."""

    def __init__(self, experiment: Experiment, out: Path, say: Report, advance: Advance) -> None:
        """Open the prepared folders.

        Args:
            experiment: what is compared.
            out: the experiment's folder; runs go below it.
            say: takes one line of news per run.
            advance: takes (steps done, steps at most) of the run in progress.

        Raises:
            PreparedInvalid, SchemaInvalid: a folder of `data` does not read.
            ConfigInvalid: the folders hold different tasks.
        """
        self.experiment, self.out, self.say, self.advance = experiment, out, say, advance
        self.data = [read_prepared(folder) for folder in experiment.data]
        self.test_rows = _test_rows(self.data, experiment.truth)
        rates = len(experiment.tuning.learning_rates) if experiment.tuning else 0
        self.runs = len(experiment.models) * (rates + len(self.data) * len(experiment.seeds))
        self._done = 0

    def outcomes(self) -> dict[str, Outcome]:
        """Return every model's predictions, training what is not trained yet."""
        self._done = 0
        return {model: self._outcome(model, self._tune(model)) for model in self.experiment.models}

    def _tune(self, model: str) -> Tuned:
        """Return the learning rate of lowest validation loss on the first folder, whose validation comes first."""
        tuning = self.experiment.tuning
        if tuning is None:
            return Tuned(self.experiment.run_config(model).training.learning_rate, {})
        losses = {}
        for rate in tuning.learning_rates:
            config = self.experiment.run_config(model, learning_rate=rate, seed=tuning.seed)
            run = self._train(self._job(model, self.data[0], config, f"lr-{rate:g}"))
            losses[rate] = float(run.result()["best"]["loss"])
        return Tuned(min(losses, key=lambda rate: losses[rate]), losses)

    def _outcome(self, model: str, tuned: Tuned) -> Outcome:
        by_seed = [list(self._predictions(model, tuned, seed)) for seed in self.experiment.seeds]
        p_SNT = np.stack([np.concatenate([found.p for found in folders]) for folders in by_seed])
        if by_seed[0][0].p_up is None:
            return Outcome(tuned, p_SNT, None)
        ups = [np.concatenate([found.p_up for found in folders if found.p_up is not None]) for folders in by_seed]
        return Outcome(tuned, p_SNT, np.stack(ups))

    def _predictions(self, model: str, tuned: Tuned, seed: int) -> Iterator[Predictions]:
        for data in self.data:
            rate = tuned.learning_rate
            config = self.experiment.run_config(model, learning_rate=rate, seed=seed)
            run = self._train(self._job(model, data, config, f"seed-{seed}-lr-{rate:g}"))
            yield _test_predictions(run, data)

    def _job(self, model: str, data: Prepared, config: RunConfig, name: str) -> _Job:
        return _Job(model, data, config, self.out / RUNS_FOLDER / model / data.folder.name / name)

    def _train(self, job: _Job) -> Run:
        """Return the job's run, finished."""
        self._done += 1
        run = create_run(job.folder, describe_run(job.config, job.data), job.data.schema)
        place = f"[{self._done}/{self.runs}] {job.model} {job.data.folder.name} {job.folder.name}"
        if run.is_finished:
            self.say(f"{place}: finished before")
            return run
        result = Trainer(run, job.data, lambda news: None, self.advance).fit()
        self.say(f"{place}: validation loss {result['best']['loss']:.5f} at step {result['best']['step']}")
        return run


def _test_predictions(run: Run, data: Prepared) -> Predictions:
    """Return a finished run's predictions of the test rows, made once and kept in its folder."""
    path = run.folder / PREDICTIONS_FILE
    if not path.exists():
        made = predict(run.trained_network(), data.split("test"))
        kept = {"p": from_numpy(made.p)} | ({} if made.p_up is None else {"p_up": from_numpy(made.p_up)})
        write_tensors(path, kept, {})
    tensors, _ = read_tensors(path)
    return Predictions(tensors["p"].numpy(), None, tensors["p_up"].numpy() if "p_up" in tensors else None)


def _test_rows(folders: list[Prepared], logs: tuple[Path, ...]) -> TestRows:
    first = folders[0]
    names = tuple(task.name for task in first.tasks)
    learned = tuple(index for index, task in enumerate(first.tasks) if not task.held_out)
    for data in folders[1:]:
        found = [(task.name, task.held_out) for task in data.tasks]
        if found != [(task.name, task.held_out) for task in first.tasks]:
            raise ConfigInvalid(f"tasks of {data.folder}", found=found, expected=f"those of {first.folder}")
    labels = np.concatenate([np.asarray(data.split("test").labels) for data in folders])
    pieces = [truth_of(log, data, "test") for log, data in zip(logs, folders, strict=False)]
    return TestRows(names, learned, labels, _users(folders, len(labels)), _pooled(pieces) if pieces else None)


def _pooled(pieces: list[Truth]) -> Truth:
    return Truth(
        np.concatenate([piece.u_N for piece in pieces]),
        np.concatenate([piece.z_N for piece in pieces]),
        np.concatenate([piece.habit_N for piece in pieces]),
    )


def _users(folders: list[Prepared], rows: int) -> NDArray[np.int64]:
    """Return user numbers 0 … U − 1; without a user column every row counts as a user of its own."""
    if any(data.info.columns.user is None for data in folders):
        return np.arange(rows)
    ids = pl.concat([pl.read_parquet(data.rows_path("test"), columns=[ROW_USER]) for data in folders])
    ranks = ids.get_column(ROW_USER).rank("dense").fill_null(0)
    _, numbers = np.unique(ranks.to_numpy(), return_inverse=True)
    return numbers.astype(np.int64)
