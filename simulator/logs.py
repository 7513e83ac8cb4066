"""Writes a simulated log: impressions, the truth behind them, their schema, and what they were made from.

Memory is bounded by the world and one chunk of rows; the folder appears whole or not at all.
Knows nothing of who reads it. Legend: N rows, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from bundle.files import new_folder
from simulator.errors import OutputExists, SizeInvalid
from simulator.exposures import Exposures, Feed
from simulator.latent import Probabilities, find_intercepts, probabilities
from simulator.oracle import auc_of_counts
from simulator.scenario import Scenario
from simulator.schema import dataset_schema, impression_columns
from simulator.world import World, make_world

CHUNK_ROWS = 100_000
_PILOT_ROWS = 50_000
_AUC_BINS = 20_000
_MAX_ROWS = 10_000_000_000


@dataclass(frozen=True)
class Chunk:
    """Some rows of the log with their truth: `z_N` the state, `labels_NT` the interactions, 0 or 1."""

    rows: Exposures
    truth: Probabilities
    z_N: NDArray[np.int8]
    labels_NT: NDArray[np.int8]


class Totals:
    """Counts over the rows written: the sum of u, states by bin of u, interactions by task."""

    def __init__(self, tasks: int) -> None:
        """Start at nothing."""
        self.u = 0.0
        self.states_2B = np.zeros((2, _AUC_BINS), dtype=np.int64)
        self.labels_T = np.zeros(tasks, dtype=np.int64)

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        self.u += float(chunk.truth.u_N.sum(dtype=np.float64))
        bin_N = np.minimum((chunk.truth.u_N * _AUC_BINS).astype(np.int64), _AUC_BINS - 1)
        for state in (0, 1):
            self.states_2B[state] += np.bincount(bin_N[chunk.z_N == state], minlength=_AUC_BINS)
        self.labels_T += chunk.labels_NT.sum(axis=0, dtype=np.int64)


class Simulation:
    """A scenario at a size and seed: the world, and the rows that come from it."""

    def __init__(self, scenario: Scenario, impressions: int, seed: int) -> None:
        """Draw the world and find the intercepts.

        Raises:
            SizeInvalid: too few impressions to spread over the days, or a seed below 0.
            ScenarioInvalid: a rate of the scenario cannot be reached.
        """
        if not scenario.size.days * 10 <= impressions <= _MAX_ROWS:
            expected = f"{scenario.size.days * 10} to {_MAX_ROWS}"
            raise SizeInvalid("impressions", found=impressions, expected=expected)
        if seed < 0:
            raise SizeInvalid("seed", found=seed, expected="0 or more")
        self.scenario = scenario
        self.impressions = impressions
        self.seed = seed
        world_seed, pilot_seed, self._rows_seed = np.random.SeedSequence(seed).spawn(3)
        self.world: World = make_world(scenario, impressions, world_seed)
        self._feed = Feed(scenario, self.world.users, self.world.items)
        pilot = self._feed.draw(_PILOT_ROWS, 0, (0.0, 1.0), np.random.default_rng(pilot_seed))
        self.intercepts = find_intercepts(scenario, self.world, pilot)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows in order of day and time, at most CHUNK_ROWS at once."""
        ends = [self.impressions * day // self.scenario.size.days for day in range(self.scenario.size.days + 1)]
        for day, day_seed in enumerate(self._rows_seed.spawn(self.scenario.size.days)):
            rows = ends[day + 1] - ends[day]
            parts = -(-rows // CHUNK_ROWS)
            for part, seed in enumerate(day_seed.spawn(parts)):
                size = rows * (part + 1) // parts - rows * part // parts
                yield self._chunk(size, day, (part / parts, (part + 1) / parts), np.random.default_rng(seed))

    def _chunk(self, size: int, day: int, part: tuple[float, float], rng: np.random.Generator) -> Chunk:
        rows = self._feed.draw(size, day, part, rng)
        truth = probabilities(self.scenario, self.world, self.intercepts, rows)
        z_N = rng.random(size, dtype=np.float32) < truth.u_N
        p_NT = np.where(z_N[:, None], truth.a_NT, truth.b_NT)
        labels_NT = rng.random(p_NT.shape, dtype=np.float32) < p_NT
        return Chunk(rows, truth, z_N.astype(np.int8), labels_NT.astype(np.int8))


def write_logs(simulation: Simulation, out: Path) -> dict[str, Any]:
    """Write the simulation's folder and return what simulation.json holds.

    Files: impressions.parquet, truth.parquet (row by row beside it), schema.yaml, simulation.json.

    Raises:
        OutputExists: `out` is there already and is not an empty folder.
    """
    scenario, users, items = simulation.scenario, simulation.world.users, simulation.world.items
    schema = dataset_schema(scenario, len(users.age_U), len(items.topic_I))
    try:
        with new_folder(out) as folder:
            totals = _write_rows(simulation, folder)
            facts = _facts(simulation, totals)
            (folder / "schema.yaml").write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")
            (folder / "simulation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except FileExistsError as exc:
        raise OutputExists(str(out), found="an existing folder", expected="a new one") from exc
    return facts


def _write_rows(simulation: Simulation, folder: Path) -> Totals:
    """Write both Parquet files and return what was counted on the way."""
    totals = Totals(len(simulation.scenario.tasks))
    impressions = truth = None
    first_session = 0
    try:
        for chunk in simulation.chunks():
            columns = impression_columns(
                simulation.scenario, simulation.world, chunk.rows, first_session, chunk.labels_NT
            )
            first_session += int(chunk.rows.session_N.max()) + 1
            log_table, truth_table = pa.table(columns), pa.table(_truth_columns(simulation, chunk))
            if impressions is None or truth is None:
                impressions = pq.ParquetWriter(folder / "impressions.parquet", log_table.schema)
                truth = pq.ParquetWriter(folder / "truth.parquet", truth_table.schema)
            impressions.write_table(log_table)
            truth.write_table(truth_table)
            totals.add(chunk)
    finally:
        for writer in (impressions, truth):
            if writer is not None:
                writer.close()
    return totals


def _truth_columns(simulation: Simulation, chunk: Chunk) -> dict[str, pa.Array]:
    """Return u, z, a_t, b_t and `habit`, the user's mean readiness over the positive tasks, in logits."""
    positive = [index for index, task in enumerate(simulation.scenario.tasks) if task.kind == "positive"]
    habit_U = simulation.world.users.habit_UT[:, positive].mean(axis=1)
    columns = {
        "u": pa.array(chunk.truth.u_N),
        "z": pa.array(chunk.z_N),
        "habit": pa.array(habit_U[chunk.rows.user_N]),
    }
    for index, name in enumerate(simulation.scenario.task_names):
        columns[f"a_{name}"] = pa.array(np.ascontiguousarray(chunk.truth.a_NT[:, index]))
        columns[f"b_{name}"] = pa.array(np.ascontiguousarray(chunk.truth.b_NT[:, index]))
    return columns


def _facts(simulation: Simulation, totals: Totals) -> dict[str, Any]:
    scenario, n_rows = simulation.scenario, simulation.impressions
    return {
        "format": 1,
        "seed": simulation.seed,
        "impressions": n_rows,
        "users": len(simulation.world.users.age_U),
        "items": len(simulation.world.items.topic_I),
        "mean_p_up": totals.u / n_rows,
        "mean_z": int(totals.states_2B[1].sum()) / n_rows,
        "oracle_auc": auc_of_counts(totals.states_2B[1], totals.states_2B[0]),
        "rates": {name: int(totals.labels_T[i]) / n_rows for i, name in enumerate(scenario.task_names)},
        "intercepts": {
            "p_up": simulation.intercepts.p_up,
            "tasks": dict(zip(scenario.task_names, simulation.intercepts.tasks, strict=True)),
        },
        "scenario": scenario.model_dump(mode="json"),
    }
