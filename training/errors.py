"""Every way in which data, a schema or a run can be wrong.

TrainingError
├── DatasetSchemaInvalid     a dataset schema file does not parse or contradicts itself
├── SourceInvalid            the input is not what the schema says
│   ├── SourceMissing        no such file or folder
│   ├── SourceUnreadable     a file that does not read: truncated Parquet, broken CSV
│   ├── LineInvalid          a line of a text file that breaks its layout
│   ├── SourceEmpty          no rows
│   ├── ColumnMissing        a column that the schema names is not there
│   ├── ColumnTypeWrong      a column of a type that cannot serve as what the schema says
│   ├── LabelInvalid         a label that is missing, NaN or neither 0 nor 1
│   ├── SplitInvalid         an unknown split value, or a split without rows
│   └── TaskDegenerate       a task with a single class in the training rows
├── OutputExists             the output is there already and was made from something else
├── OutputFailed             the output cannot be written (disk full, no permission)
├── PreparedInvalid          a prepared folder is missing, incomplete or of another version
├── RequestImpossible        no request can be built as asked
├── ConfigInvalid            a model or training configuration does not parse or contradicts itself
├── InitialisationImpossible the output biases cannot start at the base rates
├── TrainingDiverged         the loss is not finite
├── BenchmarkFailed        a command that is being measured did not end well
└── RunInvalid               a run folder is missing, unfinished, broken, or made from something else

A message gives the thing, the value found and the value expected.
"""

from __future__ import annotations

from bundle.errors import Refused


def wanted(message: str) -> str:
    """Return what one of pydantic's messages wants, without the words before it."""
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


class TrainingError(Refused):
    """Data, a schema or a run is not what training needs."""


class DatasetSchemaInvalid(TrainingError):
    """A dataset schema file does not parse or contradicts itself."""


class SourceInvalid(TrainingError):
    """The input is not what the schema says."""


class SourceMissing(SourceInvalid):
    """No such file or folder."""


class SourceUnreadable(SourceInvalid):
    """A file that does not read: truncated Parquet, broken CSV."""


class LineInvalid(SourceInvalid):
    """A line of a text file that breaks its layout."""


class SourceEmpty(SourceInvalid):
    """No rows."""


class ColumnMissing(SourceInvalid):
    """A column that the schema names is not there."""


class ColumnTypeWrong(SourceInvalid):
    """A column of a type that cannot serve as what the schema says."""


class LabelInvalid(SourceInvalid):
    """A label that is missing, NaN or neither 0 nor 1."""


class SplitInvalid(SourceInvalid):
    """An unknown split value, or a split without rows."""


class TaskDegenerate(SourceInvalid):
    """A task with a single class in the training rows."""


class OutputExists(TrainingError):
    """The output is there already and was made from something else."""


class OutputFailed(TrainingError):
    """The output cannot be written (disk full, no permission)."""


class PreparedInvalid(TrainingError):
    """A prepared folder is missing, incomplete or of another version."""


class RequestImpossible(TrainingError):
    """No request can be built as asked."""


class ConfigInvalid(TrainingError):
    """A run's configuration does not parse or names what is not there."""


class InitialisationImpossible(TrainingError):
    """Base-rate initialisation has no solution for the chosen prior."""


class TrainingDiverged(TrainingError):
    """The loss is not finite."""


class RunInvalid(TrainingError):
    """A run folder is missing, unfinished, broken, or made from something else."""


class BenchmarkFailed(TrainingError):
    """A command that is being measured did not end well."""
