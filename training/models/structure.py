"""How tasks relate: which label can only be 1 where another is, and which tasks ¬UP makes likely instead of UP.

Legend: B batch, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import ConfigInvalid
from training.models.config import ModelConfig

NO_PARENT = -1


@dataclass(frozen=True)
class TaskStructure:
    """Relations of T tasks.

    Attributes:
        parents: per task the one it lies within (P(t) = P(parent)·P(t|parent)), or NO_PARENT.
        mirrored: per task whether it is a complaint: its probability under UP is bounded, that under ¬UP is free.
    """

    parents: tuple[int, ...]
    mirrored: tuple[bool, ...]

    @property
    def has_chains(self) -> bool:
        """Whether any task lies within another."""
        return any(parent != NO_PARENT for parent in self.parents)

    @property
    def order(self) -> tuple[int, ...]:
        """Tasks, each after its parent."""
        return tuple(sorted(range(len(self.parents)), key=self._depth))

    def _depth(self, task: int) -> int:
        return 0 if self.parents[task] == NO_PARENT else 1 + self._depth(self.parents[task])

    def bounds(self, alpha_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return the upper bounds of P(t|UP) and of P(t|¬UP), each [T], given that the parent happened.

        Of a mirrored task the first is alpha and the second 1; of others the other way round. Within a parent it is
        alpha_t / alpha_parent, so that P(t|¬UP) stays below alpha_t.
        """
        ones = torch.ones_like(alpha_T)
        given_parent = alpha_T / torch.cat([alpha_T, ones[:1]])[list(self.parents)]  # NO_PARENT: the one behind
        mirrored = torch.tensor(self.mirrored, device=alpha_T.device)
        return torch.where(mirrored, alpha_T, ones), torch.where(mirrored, ones, given_parent)

    def chained(self, log_BT: Tensor, log_not_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return log P and log(1 − P) of each task from those given its parent, each [B, T].

        1 − P(t) = (1 − P(parent)) + P(parent)·(1 − P(t|parent)), a sum of positive terms: nothing cancels.
        """
        if not self.has_chains:
            return log_BT, log_not_BT
        logs, log_nots = list(log_BT.unbind(1)), list(log_not_BT.unbind(1))
        for task in self.order:
            if (parent := self.parents[task]) != NO_PARENT:
                log_nots[task] = torch.logaddexp(log_nots[parent], logs[parent] + log_nots[task])
                logs[task] = logs[parent] + logs[task]
        return torch.stack(logs, 1), torch.stack(log_nots, 1)

    def possible(self, labels_BT: Tensor) -> Tensor | None:
        """Return 1 where a task's parent happened (or there is none) and 0 elsewhere [B, T]; None without chains."""
        if not self.has_chains:
            return None
        ones = torch.ones_like(labels_BT[:, :1])
        return torch.cat([labels_BT, ones], 1)[:, list(self.parents)]  # NO_PARENT: the column of ones


def unrelated(tasks: int) -> TaskStructure:
    """Return the structure of tasks without relations."""
    return TaskStructure((NO_PARENT,) * tasks, (False,) * tasks)


def task_structure(config: ModelConfig, names: Sequence[str], kinds: Sequence[str]) -> TaskStructure:
    """Return the relations that a model's configuration gives to the tasks that it learns.

    Raises:
        ConfigInvalid: `within` names no learned task, goes in a circle, or reaches a mirrored task.
    """
    expected = f"two different of {', '.join(names)}"
    for child, parent in config.within.items():
        if child not in names or parent not in names or child == parent:
            raise ConfigInvalid(f"within.{child}", found=parent, expected=expected)
        above, steps = parent, 0
        while above in config.within and steps <= len(names):
            above, steps = config.within[above], steps + 1
        if steps > len(names):
            raise ConfigInvalid(f"within.{child}", found="a circle", expected="chains that end")
    parents = tuple(names.index(config.within[name]) if name in config.within else NO_PARENT for name in names)
    mirrored = tuple(config.has_latent and config.mirror_negative and kind == "negative" for kind in kinds)
    for task, is_mirrored in enumerate(mirrored):
        if is_mirrored and (parents[task] != NO_PARENT or task in parents):
            raise ConfigInvalid(f"within: {names[task]}", found="a mirrored task", expected="positive tasks")
    return TaskStructure(parents, mirrored)
