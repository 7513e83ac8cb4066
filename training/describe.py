"""What a run on prepared data will be: its configuration, the tasks it learns, the data it sees."""

from __future__ import annotations

import numpy as np

from training.config import RunConfig
from training.dataset import Prepared
from training.dwell import dwell_scale
from training.errors import ConfigInvalid, TaskDegenerate
from training.models.structure import task_structure
from training.run import RunDescription, TrainedTask
from training.start import start_digest

_ROWS_AT_ONCE = 1_000_000


def describe_run(config: RunConfig, data: Prepared) -> RunDescription:
    """Return the description of a run that learns the data's tasks but the held-out ones.

    Raises:
        TaskDegenerate: no task is left, or one has a single class in the training rows.
        ConfigInvalid: a task weight or `within` names a task that is not learned, the labels are not nested so, or
            dwell is asked for without a joint likelihood or without such data.
        RunInvalid: `start_from` is no finished run, or none of its features compares.
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
    task_structure(config.model, [task.name for task in tasks], [task.kind for task in tasks])
    _check_nested(config.model.within, data)
    if config.model.dwell and not _joint_share(config):
        found = f"the {config.training.loss} loss, joint_share {_joint_share(config):g}"
        raise ConfigInvalid("model.dwell", found=found, expected="the joint or the mixed loss")
    if config.training.settle and not (config.model.has_latent and _joint_share(config)):
        found = f"{config.model.name}, the {config.training.loss} loss"
        raise ConfigInvalid("training.settle", found=found, expected="a model with P(UP), the joint or the mixed loss")
    dwell = dwell_scale(data) if config.model.dwell else None
    start = start_digest(config.training.start_from, data.schema) if config.training.start_from else None
    return RunDescription(config=config, tasks=tasks, dwell=dwell, data_fingerprint=data.info.fingerprint, start=start)


def _joint_share(config: RunConfig) -> float:
    """Return the weight of the joint likelihood in the loss."""
    return {"joint": 1.0, "marginal": 0.0}.get(config.training.loss, config.training.joint_share)


def _check_nested(within: dict[str, str], data: Prepared) -> None:
    """Refuse chains that the training labels contradict."""
    if not within:
        return
    columns = {task.name: index for index, task in enumerate(data.tasks)}
    labels = data.split("train").labels
    for child, parent in within.items():
        alone, positives = 0, 0
        for start in range(0, len(labels), _ROWS_AT_ONCE):
            piece = np.asarray(labels[start : start + _ROWS_AT_ONCE])
            inner, outer = piece[:, columns[child]], piece[:, columns[parent]]
            alone += int(np.count_nonzero(inner > outer))
            positives += int(np.count_nonzero(inner))
        if alone:
            raise ConfigInvalid(
                f"within.{child}: {parent}", found=f"{alone} of {positives} {child} rows without it", expected="none"
            )
