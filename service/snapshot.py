"""What a request sees from start to end: one model version and one fusion config, checked against each other.

`Serving` holds the current snapshots behind one reference; swapping it is the only way anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusion.calibration import Calibration
from fusion.fuse import CompiledPolicy, compile_policy
from fusion.policy import FusionConfig
from service.errors import ModelChoiceNeeded, ModelUnknown, NotReady
from service.models import LoadedModel


@dataclass(frozen=True)
class Snapshot:
    """One model version and one fusion config that fit each other.

    Attributes:
        model: the model.
        config: the fusion config.
        policies: every policy of the config, compiled for the model.
    """

    model: LoadedModel
    config: FusionConfig
    policies: Mapping[str, CompiledPolicy]


def take_snapshot(model: LoadedModel, config: FusionConfig) -> Snapshot:
    """Return the snapshot of a model and a config.

    Raises:
        PolicyMismatch: a policy names what the model does not have.
    """
    manifest = model.manifest
    calibrations = {
        task.name: Calibration(task.calibration.temperature, task.calibration.offset)
        for task in manifest.tasks
        if task.calibration is not None
    }
    policies = {
        name: compile_policy(policy, manifest.task_names, manifest.has_latent, config.negative_tasks, calibrations)
        for name, policy in config.policies.items()
    }
    return Snapshot(model, config, policies)


class Serving:
    """The snapshots that serve, by model name."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self.snapshots: Mapping[str, Snapshot] = {}

    def choose(self, name: str | None) -> Snapshot:
        """Return the named model's snapshot, or the only one.

        Raises:
            NotReady: nothing serves yet.
            ModelUnknown: no such model serves.
            ModelChoiceNeeded: several serve and none is named.
        """
        snapshots = self.snapshots
        if not snapshots:
            raise NotReady("models", found="none yet", expected="a warmed model")
        known = ", ".join(sorted(snapshots))
        if name is not None:
            if name not in snapshots:
                raise ModelUnknown("model", found=repr(name), expected=f"one of {known}")
            return snapshots[name]
        if len(snapshots) > 1:
            raise ModelChoiceNeeded("$.model", found="nothing", expected=f"one of {known}")
        return next(iter(snapshots.values()))
