"""A run's folder: configuration, weights, resumable state, history. Tensors lie in safetensors, never pickles.

run.json            configuration, tasks, base rates, data fingerprint
features.json       the fitted feature schema the network was built for
state.safetensors   everything needed to go on after a kill (removed when finished)
model.safetensors   the best weights on validation
sample.safetensors  encoded validation rows with labels: an export's parity checks, golden request and precision gate
history.jsonl       one line per validation
result.json         written last: the run is finished
tensorboard/        scalars
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from bundle.features import FeatureSchema, read_schema
from bundle.files import resumed_folder, write_file
from training.config import RunConfig
from training.errors import RunInvalid
from training.models.dwell import DwellTower
from training.models.initialise import initialise
from training.models.network import Network
from training.models.structure import task_structure
from training.tensors import read_tensors

RUN_FILE = "run.json"
FEATURES_FILE = "features.json"
SAMPLE_FILE = "sample.safetensors"
STATE_FILE = "state.safetensors"
MODEL_FILE = "model.safetensors"
HISTORY_FILE = "history.jsonl"
RESULT_FILE = "result.json"


class TrainedTask(BaseModel):
    """A task that the run learns: its kind and its share of positives in the training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    base_rate: float


class DwellScale(BaseModel):
    """Mean and standard deviation of log(1 + seconds of dwell) in the training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    deviation: float


class RunDescription(BaseModel):
    """The content of run.json; two runs with equal descriptions give equal weights.

    Attributes:
        start: digest of the run that the weights start from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    config: RunConfig
    tasks: tuple[TrainedTask, ...]
    dwell: DwellScale | None = Field(default=None, exclude_if=lambda dwell: dwell is None)
    data_fingerprint: str
    start: str | None = Field(default=None, exclude_if=lambda start: start is None)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the learned tasks, in the order of the network's task axis."""
        return tuple(task.name for task in self.tasks)

    @property
    def base_rates_T(self) -> NDArray[np.float64]:
        """Base rates [T]."""
        return np.array([task.base_rate for task in self.tasks])


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path
    description: RunDescription
    schema: FeatureSchema

    @property
    def is_finished(self) -> bool:
        """Whether training ended and its result is written."""
        return (self.folder / RESULT_FILE).exists()

    def new_network(self, own_rows: Callable[[int], slice] | None = None) -> Network:
        """Return the network at initialisation; the caller seeds torch.

        `own_rows` gives the rows that are kept of a table of so many (default: all).
        """
        config, tasks = self.description.config.model, self.description.tasks
        structure = task_structure(config, self.description.task_names, [task.kind for task in tasks])
        network = Network(config, self.schema, len(tasks), structure, own_rows)
        initialise(network, self.description.base_rates_T, self.description.task_names)
        if (scale := self.description.dwell) is not None and isinstance(tower := network.head.dwell, DwellTower):
            tower.start_at(scale.mean, scale.deviation)
        return network

    def trained_network(self) -> Network:
        """Return the network with the best weights, in evaluation mode.

        Raises:
            RunInvalid: the run is not finished, or its weights do not read or fit.
        """
        if not self.is_finished:
            raise RunInvalid(str(self.folder), found="an unfinished run", expected="a finished one (dlen train)")
        network = self.new_network()
        tensors, _ = read_tensors(self.folder / MODEL_FILE)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as exc:
            raise RunInvalid(str(self.folder / MODEL_FILE), found=str(exc), expected="this network's weights") from exc
        return network.eval()

    def sample(self) -> dict[str, Tensor]:
        """Return the validation rows kept with a finished run: codes [rows, C], values [rows, V], labels [rows, T]."""
        tensors, _ = read_tensors(self.folder / SAMPLE_FILE)
        return tensors

    def result(self) -> dict[str, Any]:
        """Return the content of result.json."""
        loaded: dict[str, Any] = json.loads((self.folder / RESULT_FILE).read_text())
        return loaded


def create_run(folder: Path, description: RunDescription, schema: FeatureSchema) -> Run:
    """Return the run in `folder`, new or the one that was begun there with the same description.

    Raises:
        RunInvalid: the folder holds a run of another description; names the first difference.
    """
    run = Run(folder, description, schema)
    if (folder / RUN_FILE).exists():
        _check_same(read_run(folder).description, run)
        return run
    if folder.exists() and any(folder.iterdir()):
        raise RunInvalid(str(folder), found="a folder without run.json", expected="a new folder or a run")
    described = description.model_dump_json(indent=1)
    with resumed_folder(folder, described) as aside:
        write_file(aside / FEATURES_FILE, schema.model_dump_json().encode())
        write_file(aside / RUN_FILE, described.encode())
    return run


def read_run(folder: Path) -> Run:
    """Return the run in a folder.

    Raises:
        RunInvalid: there is none, or its run.json does not read.
        SchemaInvalid: its features.json does not read.
    """
    path = folder / RUN_FILE
    try:
        description = RunDescription.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise RunInvalid(str(path), found=exc.strerror, expected="a run (dlen train --out)") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RunInvalid(f"{path}: {place}", found=repr(first["input"])[:80], expected=first["msg"]) from None
    return Run(folder, description, read_schema(folder / FEATURES_FILE))


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed torch's generators, the only ones the network uses; each further rank of a run gets its own numbers."""
    torch.manual_seed(seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))


def _check_same(found: RunDescription, run: Run) -> None:
    old, new = found.model_dump(mode="json"), run.description.model_dump(mode="json")
    for place, was, now in _differences("", old, new):
        raise RunInvalid(
            f"{run.folder}: {place}", found=f"a run with {was!r}", expected=f"{now!r}; choose another --out"
        )


def _differences(place: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in _differences(f"{place}.{key}".lstrip("."), old.get(key), new.get(key))]
    return [] if old == new else [(place, old, new)]
