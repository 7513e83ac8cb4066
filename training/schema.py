"""The dataset schema: which columns of a table are ids, features and labels, and how rows are split.

A YAML file written by a person (see docs/datasets.md). Knows nothing of how tables are read.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.features import Feature, FeatureSchema
from training.errors import DatasetSchemaInvalid, wanted

SPLITS = ("train", "validation", "test")
"""Split names, in order of time."""

TimeValue = int | float | datetime.datetime | datetime.date | str


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(_Model):
    """Names of the id columns; each may be absent.

    Attributes:
        user: groups rows for GAUC and for building rank requests.
        item: the candidate's id in rank requests.
        time: when the impression happened; any ordered type.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None


class TimeSplit(_Model):
    """Rows before `validation_from` train, rows from `test_from` on test, those between validate.

    Attributes:
        column: the ordered column; the schema's time column when absent.
        train_from: rows before it are left out.
        test_until: rows after it are left out (the bound itself stays).
    """

    by: Literal["time"]
    column: str | None = None
    train_from: TimeValue | None = None
    validation_from: TimeValue
    test_from: TimeValue
    test_until: TimeValue | None = None

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        given = (self.train_from, self.validation_from, self.test_from, self.test_until)
        bounds = [bound for bound in given if bound is not None]
        if len({type(bound) for bound in bounds} - {int, float}) > 1 or len({isinstance(b, str) for b in bounds}) > 1:
            raise ValueError("train_from, validation_from, test_from and test_until must be of one type")
        if self.validation_from >= self.test_from:  # type: ignore[operator]  # of one type, checked above
            raise ValueError(f"validation_from {self.validation_from} must come before test_from {self.test_from}")
        return self


class ColumnSplit(_Model):
    """Rows go where a string column says: train, validation or test."""

    by: Literal["column"]
    column: str


class RandomSplit(_Model):
    """Rows are drawn by a seeded generator, in file order."""

    by: Literal["random"]
    seed: int = Field(default=0, ge=0)
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test must be below 1, is {self.validation + self.test:g}")
        return self


Split = Annotated[TimeSplit | ColumnSplit | RandomSplit, Field(discriminator="by")]


class Task(_Model):
    """One behaviour to predict.

    Attributes:
        name: as in the bundle, the fusion policy and every answer.
        label: the column that holds 0 or 1.
        kind: whether the behaviour is wanted (`positive`) or a complaint (`negative`).
        held_out: the label is kept for evaluation, and no model is trained on it.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", max_length=64)
    label: str
    kind: Literal["positive", "negative"] = "positive"
    held_out: bool = False


class Dwell(_Model):
    """How long an impression was looked at: an outcome beside the tasks, never an input.

    Attributes:
        column: of numbers of at least 0; missing where nothing was measured.
        unit: of the column.
        cap_s: longer stays count as this many seconds.
    """

    column: str
    unit: Literal["s", "ms"] = "s"
    cap_s: float = Field(default=600.0, gt=0, le=86_400)


class DatasetSchema(_Model):
    """A whole dataset schema file.

    Attributes:
        columns: id columns.
        split: how rows are split.
        tasks: behaviours, in the order of every task axis.
        dwell: how long rows were looked at; None: not known.
        features: as in `bundle.features`; a feature's name is its column.
    """

    version: Literal[1] = 1
    columns: Columns = Columns()
    split: Split
    tasks: tuple[Task, ...] = Field(min_length=1)
    dwell: Dwell | None = Field(default=None, exclude_if=lambda dwell: dwell is None)
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task names must be unique, found {', '.join(names)}")
        if all(task.held_out for task in self.tasks):
            raise ValueError("at least one task must not be held out")
        labels = {task.label for task in self.tasks}
        if leaked := sorted(labels & {feature.name for feature in self.features}):
            raise ValueError(f"a label must not be a feature, found {', '.join(leaked)}")
        if self.dwell is not None and self.dwell.column in {feature.name for feature in self.features}:
            raise ValueError(f"dwell must not be a feature, found {self.dwell.column}")
        if isinstance(self.split, TimeSplit) and self.split_column is None:
            raise ValueError("a split by time needs split.column or columns.time")
        _ = self.feature_schema
        return self

    @property
    def feature_schema(self) -> FeatureSchema:
        """The features as the bundle's schema, not fitted unless the file holds fitted values."""
        return FeatureSchema(features=self.features)

    @property
    def split_column(self) -> str | None:
        """Name of the column that decides the split; None for a random one."""
        if isinstance(self.split, TimeSplit):
            return self.split.column or self.columns.time
        return self.split.column if isinstance(self.split, ColumnSplit) else None

    @property
    def wanted_columns(self) -> dict[str, str]:
        """Every column that a table must hold, with what it is for."""
        wanted = {feature.name: "a feature" for feature in self.features}
        wanted |= {task.label: f"the label of task {task.name!r}" for task in self.tasks}
        if self.dwell is not None:
            wanted[self.dwell.column] = "the dwell column"
        wanted |= {name: f"the {role} column" for role, name in self.columns if name is not None}
        if (column := self.split_column) is not None:
            wanted.setdefault(column, "the split column")
        return wanted

    @property
    def order_columns(self) -> tuple[str, ...]:
        """The columns on which later rows depend through the rows before them: what numbers users and draws splits."""
        given = (self.split_column, self.columns.user)
        return tuple(dict.fromkeys(name for name in given if name is not None)) or (self.tasks[0].label,)


class _SplitFile(_Model):
    split: Split


_M = TypeVar("_M", bound=BaseModel)


def read_dataset_schema(path: Path, split_path: Path | None = None) -> DatasetSchema:
    """Return the dataset schema in a YAML file; `split_path`, a file with only `split:`, replaces its split.

    Raises:
        DatasetSchemaInvalid: names the file, the place in it, what was found and what was expected.
    """
    document = _read_mapping(path)
    if split_path is not None:
        document["split"] = _parsed(_SplitFile, split_path, _read_mapping(split_path)).split.model_dump()
    return _parsed(DatasetSchema, path, document)


def _parsed(model: type[_M], path: Path, document: dict[str, object]) -> _M:
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        first = min(errors, key=lambda error: error["type"] != "extra_forbidden")  # a key misspelt is one missing, too
        missing = first["type"] == "missing"
        place = _place(first["loc"], document, missing=missing)
        found = first["input"]
        shown = repr(found) if isinstance(found, str | int | float | bool | None) else type(found).__name__
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        expected = wanted(first["msg"])
        if missing:
            shown, expected = "nothing", "a value: it is required"
        elif first["type"] == "extra_forbidden":
            expected = "no such key here"
        elif first["type"] == "union_tag_not_found":
            place += "." + first["ctx"]["discriminator"].strip("'")
            shown, expected = "nothing", "a value: it is required"
        elif first["type"] == "union_tag_invalid":
            context = first["ctx"]
            place += "." + context["discriminator"].strip("'")
            shown, expected = repr(context["tag"]), f"one of {context['expected_tags']}"
        elif first["type"] == "value_error":  # raised by a check of ours, of parts that are valid one by one
            shown = "a contradiction"
        raise DatasetSchemaInvalid(f"{path}: {place}", found=shown[:80], expected=expected + more) from None


def _place(location: tuple[int | str, ...], document: object, *, missing: bool) -> str:
    """Return a dotted path in which list entries that have a name are shown by it, without pydantic's union tags."""
    parts: list[str] = []
    for key in location:
        if isinstance(document, list) and isinstance(key, int) and key < len(document):
            document = document[key]
            name = document.get("name") if isinstance(document, dict) else None
            parts.append(f"{key} ({name})" if name else str(key))
        elif isinstance(document, dict) and key in document:
            document = document[key]
            parts.append(str(key))
        elif missing and key == location[-1]:
            parts.append(str(key))
    return ".".join(parts) or "document"


def _read_mapping(path: Path) -> dict[str, object]:
    try:
        document = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)  # a SafeLoader
    except OSError as exc:
        raise DatasetSchemaInvalid(str(path), found=exc.strerror, expected="a readable YAML file") from exc
    except UnicodeDecodeError as exc:
        raise DatasetSchemaInvalid(str(path), found=f"byte {exc.start} not UTF-8", expected="a YAML file") from None
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"{path}: line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        problem = getattr(exc, "problem", None) or str(exc)
        raise DatasetSchemaInvalid(place, found=problem, expected="a YAML mapping") from None
    if not isinstance(document, dict):
        raise DatasetSchemaInvalid(str(path), found=type(document).__name__, expected="a YAML mapping")
    return document


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """Return the mapping of a node."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
