"""What a request sees from start to end: one model version and one fusion config, checked against each other.

`Serving` holds the current snapshots behind one reference; swapping it is the only way anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusion.calibration import Calibration
from fusion.live import Fusion, compile_config
from fusion.policy import FusionConfig
from service.errors import ModelChoiceNeeded, ModelUnknown, NotReady
from service.models import LoadedModel
from service.wire.typed_json import TypedJson


@dataclass(frozen=True)
class Snapshot:
    """One model version and one fusion config that fit each other.

    Attributes:
        model: the model.
        fusion: the config, every policy of it compiled for the model.
        sides: side → names of the model's features on it.
    """

    model: LoadedModel
    fusion: Fusion
    sides: Mapping[str, frozenset[str]]


def take_snapshot(model: LoadedModel, config: FusionConfig) -> Snapshot:
    """Return the snapshot of a model and a config.

    Raises:
        FusionError: a policy, or a combination of variants, does not fit the model.
    """
    manifest = model.manifest
    calibrations = {
        task.name: Calibration(task.calibration.temperature, task.calibration.offset)
        for task in manifest.tasks
        if task.calibration is not None
    }
    features = model.encoder.schema.features
    sides = {side: frozenset(f.name for f in features if f.side == side) for side in ("user", "context", "item")}
    return Snapshot(model, compile_config(config, manifest.task_names, manifest.has_latent, calibrations), sides)


class Serving:
    """The snapshots that serve, by model name."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self.snapshots: Mapping[str, Snapshot] = {}

    def publish(self, *snapshots: Snapshot) -> None:
        """Let snapshots serve from the next request on; requests that hold older ones end with those."""
        self.snapshots = {**self.snapshots, **{snapshot.model.name: snapshot for snapshot in snapshots}}

    @property
    def typed_json(self) -> TypedJson | None:
        """How rows of candidates are decoded, where one model serves, so that it is known before the body is."""
        snapshots = self.snapshots
        return next(iter(snapshots.values())).model.typed_json if len(snapshots) == 1 else None

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
