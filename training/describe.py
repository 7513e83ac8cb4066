"""What a run on prepared data will be: its configuration, the tasks it learns, the data it sees."""

from __future__ import annotations

from training.config import RunConfig
from training.dataset import Prepared
from training.errors import ConfigInvalid, TaskDegenerate
from training.run import RunDescription, TrainedTask


def describe_run(config: RunConfig, data: Prepared) -> RunDescription:
    """Return the description of a run that learns the data's tasks but the held-out ones.

    Raises:
        TaskDegenerate: no task is left, or one has a single class in the training rows.
        ConfigInvalid: a task weight names a task that is not learned.
    """
    tasks = tuple(
        TrainedTask(name=task.name, kind=task.kind, base_rate=task.base_rate)
        for task in data.tasks
        if not task.held_out
    )
    if not tasks:
        raise TaskDegenerate(str(data.folder), found="only held-out tasks", expected="a task to learn")
    names = {task.name for task in tasks}
    if unknown := sorted(config.training.task_weights.keys() - names):
        raise ConfigInvalid(f"task_weights.{unknown[0]}", found="no such task", expected=", ".join(sorted(names)))
    return RunDescription(config=config, tasks=tasks, data_fingerprint=data.info.fingerprint)
