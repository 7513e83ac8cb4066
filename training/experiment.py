"""An experiment: which models are compared, on which data, with which seeds and which budget of tuning.

A YAML file written by a person (see docs/training.md). Knows nothing of how runs are made or figures drawn.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.config import RunConfig
from training.errors import ConfigInvalid, wanted

Sections = dict[Literal["model", "training"], dict[str, Any]]
"""Keys of `RunConfig` that an experiment sets, by section."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tuning(_Model):
    """The budget of tuning, the same for every model: one run per learning rate.

    Attributes:
        learning_rates: tried by each model; kept is the one of lowest validation loss.
        seed: of the tuning runs; never one of the compared seeds.
    """

    learning_rates: tuple[float, ...] = Field(default=(3e-4, 1e-3, 3e-3), min_length=1)
    seed: int = Field(default=1000, ge=0)


class Experiment(_Model):
    """A whole experiment file.

    Attributes:
        title: headline of the results.
        paper: which of the paper's tables to print beside ours.
        data: prepared folders; with several (days), their test rows are pooled, each scored by its own run.
        truth: the simulated logs that each folder of `data` was prepared from, to measure recovery of P(UP).
        baseline: the model that gains refer to.
        seeds: each model is trained once per seed and folder.
        tuning: absent: every model keeps the learning rate that it is given.
        given: task → another one: it is measured once more, as P(task) / P(other) over the rows where that happened.
        redraws: of the bootstrap over users.
        common: settings of every model.
        models: name → settings that differ from `common`; the order is that of the tables.
    """

    title: str
    paper: Literal["table-1", "table-3"] | None = None
    data: tuple[Path, ...] = Field(min_length=1)
    truth: tuple[Path, ...] = ()
    baseline: str
    seeds: tuple[int, ...] = Field(min_length=1)
    tuning: Tuning | None = None
    given: dict[str, str] = {}
    redraws: int = Field(default=1000, ge=10, le=100_000)
    common: Sections = {}
    models: dict[str, Sections] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [folder.name for folder in self.data]
        if len(set(names)) != len(names):
            raise ValueError(f"data folders must have names of their own, found {', '.join(names)}")
        if self.truth and len(self.truth) != len(self.data):
            raise ValueError(f"truth needs one folder for each of data, found {len(self.truth)} of {len(self.data)}")
        if self.baseline not in self.models:
            raise ValueError(f"baseline {self.baseline!r} must be one of {', '.join(self.models)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ")
        if self.tuning and self.tuning.seed in self.seeds:
            raise ValueError(f"the tuning seed {self.tuning.seed} must not be one of the compared seeds")
        if any(sections.get("training", {}).keys() & {"seed"} for sections in (self.common, *self.models.values())):
            raise ValueError("seeds are set by `seeds`, not by training.seed")
        if bad := [name for name in self.models if not _NAME.fullmatch(name)]:
            raise ValueError(f"a model's name must be one of a folder (letters, digits, . _ -), found {bad[0]!r}")
        return self

    def run_config(self, name: str, **training: Any) -> RunConfig:
        """Return the run configuration of a model, with keys of its training section replaced.

        `{seed}` in `start_from` becomes the run's seed.
        """
        own = self.models[name]
        model = self.common.get("model", {}) | own.get("model", {})
        training = self.common.get("training", {}) | own.get("training", {}) | training
        if "start_from" in training and "seed" in training:
            training["start_from"] = str(training["start_from"]).replace("{seed}", str(training["seed"]))
        return RunConfig.model_validate({"model": model, "training": training})


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a YAML file.

    Raises:
        ConfigInvalid: names the file, the place, what was found and what is expected.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigInvalid(str(path), found=exc.strerror, expected="a readable YAML file") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigInvalid(str(path), found=str(exc).replace("\n", " "), expected="YAML") from exc
    experiment = _parsed(document, str(path))
    for name in experiment.models:
        try:
            experiment.run_config(name)
        except ValidationError as exc:
            raise _invalid(exc, f"{path}: models.{name}") from None
    return experiment


def _parsed(document: object, path: str) -> Experiment:
    try:
        return Experiment.model_validate(document)
    except ValidationError as exc:
        raise _invalid(exc, path) from None


def _invalid(exc: ValidationError, place: str) -> ConfigInvalid:
    first = exc.errors(include_url=False)[0]
    within = ".".join(map(str, first["loc"])) or "document"
    found = "a contradiction" if first["type"] == "value_error" else repr(first["input"])[:80]
    return ConfigInvalid(f"{place}: {within}", found=found, expected=wanted(first["msg"]))
