"""A run's configuration: the network and how it is trained, from a YAML file and `--set` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import ConfigInvalid, wanted
from training.losses import LossName
from training.models.config import ModelConfig


class TrainingConfig(BaseModel):
    """How a network is trained.

    Attributes:
        loss: `joint` identifies P(UP); `marginal` is the paper's; `mixed` is a weighted sum of both.
        joint_share: weight of the joint loss in `mixed`.
        task_weights: weight of a task's cross-entropy in the marginal loss; 1 where not named.
        learning_rate: Adam's, after a linear warm-up over `warmup_steps`, falling to 0 along a cosine.
        embedding_decay: L2 penalty on the embedding rows of a batch (weight decay of the tables).
        sparse_tables: only the embedding rows of a batch are updated (lazy Adam). Other rows' momentum stands
            still, so weights differ a little from those without; faster from some 300,000 embedding rows on.
        rows_share: share of the training rows that is used: a draw of the seed's, the same for every model. Encodings,
            base rates and validation stay those of all rows.
        batch_size: rows per step, over all processes.
        sharded_tables: under torchrun each process holds its share of the embedding rows only (TorchRec).
        precision: of the matrix products of a step; weights, logits, losses and validation are float32 in both.
        epochs: passes over the training rows at most.
        evaluations_per_epoch: validations per epoch, evenly spaced.
        patience: validations without a better loss before training stops.
        average: decay of the exponential moving average of the weights that is validated and kept; 0: none.
        settle: fit scale and offset of the latent head's logits to the validation rows by the joint likelihood, once
            training is over; pins the level of P(UP) (`training.settle`).
        seed: of initial weights, the order of rows and dropout.
        start_from: folder of a finished run whose weights the network starts from, where they fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossName = "joint"
    joint_share: float = Field(default=0.5, ge=0, le=1)
    task_weights: dict[str, float] = {}
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    embedding_decay: float = Field(default=0.0, ge=0)
    sparse_tables: bool = False
    sharded_tables: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    rows_share: float = Field(default=1.0, gt=0, le=1)
    batch_size: int = Field(default=1024, ge=1)
    epochs: int = Field(default=3, ge=1)
    evaluations_per_epoch: int = Field(default=2, ge=1)
    patience: int = Field(default=3, ge=1)
    average: float = Field(default=0.99, ge=0, lt=1)
    settle: bool = Field(default=False, exclude_if=lambda settle: not settle)
    seed: int = Field(default=1, ge=0)
    start_from: Path | None = Field(default=None, exclude_if=lambda start: start is None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sparse_tables and self.embedding_decay:
            raise ValueError("embedding_decay must be 0 with sparse_tables")
        if self.sparse_tables and self.sharded_tables:
            raise ValueError("sparse_tables and sharded_tables exclude each other")
        if self.settle and self.sharded_tables:
            raise ValueError("settle needs whole tables, not sharded_tables")
        return self


class RunConfig(BaseModel):
    """Everything that decides a run's result beside its data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()


def read_config(file: Path | None, model: str | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Return the file's configuration with `model` as its name and `section.key` overrides applied.

    Raises:
        ConfigInvalid: names the file or override, the place, what was found and what is expected.
    """
    document: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text())
        except OSError as exc:
            raise ConfigInvalid(str(file), found=exc.strerror, expected="a readable YAML file") from exc
        except yaml.YAMLError as exc:
            raise ConfigInvalid(str(file), found=str(exc).replace("\n", " "), expected="YAML") from exc
        if not isinstance(loaded, dict):
            raise ConfigInvalid(str(file), found=type(loaded).__name__, expected="sections model and training")
        document = loaded
    if model is not None:
        document = document | {"model": (document.get("model") or {}) | {"name": model}}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        document = document | {section: (document.get(section) or {}) | {name: value}}
    try:
        return RunConfig.model_validate(document)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigInvalid(
            f"{file or 'configuration'}: {place}", found=repr(first["input"]), expected=wanted(first["msg"])
        ) from None


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Return `section.key` → value from `key=value` arguments; a bare key is looked up in both sections.

    Raises:
        ConfigInvalid: an argument without "=", or a key that neither section holds.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigInvalid(f"--set {pair}", found="no '='", expected="key=value")
        overrides[_qualified(key)] = yaml.safe_load(text)
    return overrides


def _qualified(key: str) -> str:
    section, dot, name = key.partition(".")
    known = {"model": ModelConfig.model_fields, "training": TrainingConfig.model_fields}
    if dot and name in known.get(section, {}):
        return key
    for candidate, fields in known.items():
        if not dot and key in fields:
            return f"{candidate}.{key}"
    names = sorted(f"{s}.{n}" for s, fields in known.items() for n in fields)
    raise ConfigInvalid(f"--set {key}", found="an unknown key", expected=f"one of {', '.join(names)}")
