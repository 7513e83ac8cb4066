"""What an experiment measures each model on: every learned task over all rows, and tasks given another over its rows.

A conditional measure, such as CVR, is P(task) / P(parent) over the rows where the parent happened. With the task
modelled `within` its parent that ratio is P(task|parent) itself. Legend: S seeds, N rows, T tasks, M measured rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.compare import TestRows
from training.errors import ConfigInvalid

_LEAST = 1e-12


@dataclass(frozen=True)
class Measure:
    """One thing that models are measured on.

    Attributes:
        name: of the task, or `<task>_given_<parent>`.
        task: its place on the task axis of predictions.
        parent: that of the task it is given; None over all rows.
        rows_M: the test rows that count.
        labels_M, users_M: of those rows.
    """

    name: str
    task: int
    parent: int | None
    rows_M: NDArray[np.int64]
    labels_M: NDArray[np.uint8]
    users_M: NDArray[np.int64]

    def scores(self, p_SNT: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what orders the rows [S, M]: P(task), or P(task) / P(parent), at most 1."""
        if self.parent is None:
            return p_SNT[:, :, self.task]
        p_SMT = p_SNT[:, self.rows_M]
        ratio_SM = p_SMT[:, :, self.task] / np.maximum(p_SMT[:, :, self.parent], _LEAST)
        return np.asarray(np.minimum(ratio_SM, 1.0))


def measures(rows: TestRows, given: Mapping[str, str]) -> list[Measure]:
    """Return the learned tasks in order, then each of `given`, task → the one it is given.

    Raises:
        ConfigInvalid: `given` names a task that is not learned, or one given itself.
    """
    names = [rows.tasks[column] for column in rows.learned]
    everything = np.arange(len(rows.labels))
    found = [
        Measure(name, index, None, everything, rows.labels[:, column], rows.users_N)
        for index, (name, column) in enumerate(zip(names, rows.learned, strict=True))
    ]
    for name, parent in given.items():
        if name not in names or parent not in names or name == parent:
            raise ConfigInvalid(f"given.{name}", found=parent, expected=f"two different of {', '.join(names)}")
        task, above = names.index(name), names.index(parent)
        rows_M = np.flatnonzero(rows.labels[:, rows.learned[above]])
        labels_M = rows.labels[rows_M, rows.learned[task]]
        found.append(Measure(f"{name}_given_{parent}", task, above, rows_M, labels_M, rows.users_N[rows_M]))
    return found
