"""A new config against the one that serves: what moves, and what a running experiment must not do.

Changing a running experiment's weights, slice, variants or salt deals its users anew, so it needs a new phase; more
or less traffic does not move anybody between variants. Knows nothing of users or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion.errors import PhaseNeeded
from fusion.layers import Experiment, Layer
from fusion.policy import FusionConfig


def compare_configs(old: FusionConfig, new: FusionConfig) -> list[str]:
    """Return what changes, one line each, in reading order.

    Raises:
        PhaseNeeded: a running experiment was changed in a way that moves users between variants.
    """
    notes: list[str] = []
    if old.version == new.version:
        return ["nothing: the configs say the same"]
    if old.default != new.default:
        notes.append(f"default policy: {old.default} → {new.default} for all users in no experiment that names one")
    for name in sorted({*old.policies, *new.policies}):
        if name not in new.policies or name not in old.policies:
            notes.append(f"policy {name}: {'removed' if name in old.policies else 'new'}")
        elif changes := _changed(old, new, name):
            notes.append(f"policy {name}: {changes}")
    if old.holdout != new.holdout:
        kept = "users stay where they are" if old.holdout.salt == new.holdout.salt else "other users"
        notes.append(f"holdout: {old.holdout.share:.2%} → {new.holdout.share:.2%} ({kept})")
    before = {experiment.name: (layer, experiment) for layer in old.layers for experiment in layer.experiments}
    after = {experiment.name: (layer, experiment) for layer in new.layers for experiment in layer.experiments}
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            notes.append(f"experiment {name}: {'ends' if name in before else 'new'}")
        else:
            notes.extend(_compare_experiment(new, *before[name], *after[name]))
            if before[name][1].variants == after[name][1].variants and before[name][1].phase == after[name][1].phase:
                notes.extend(_policies_changed(old, new, after[name][1]))
    return notes or ["descriptions, test users or the order of keys only: no ranking changes"]


def _changed(old: FusionConfig, new: FusionConfig, name: str) -> str:
    """Return what orders the feed by a policy otherwise than before; what describes it does not."""
    first, second = (
        _leaves(config.policies[name].model_dump(mode="json", exclude={"description"})) for config in (old, new)
    )
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return "; ".join(f"{key} {first.get(key, 'absent')} → {second.get(key, 'absent')}" for key in keys)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key → value of everything that is no mapping."""
    leaves: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _policies_changed(old: FusionConfig, new: FusionConfig, experiment: Experiment) -> list[str]:
    """Return a note for each variant of an experiment whose policy is not what it was, by name or through another."""
    if experiment.status != "running":
        return []
    notes = []
    for variant in experiment.variants:
        before, after = (variant.policy or config.default for config in (old, new))
        if before != after or (after in old.policies and _changed(old, new, after)):
            notes.append(
                f"experiment {experiment.name}: the policy under {variant.name!r} ({after}) changes while it runs; "
                "its figures before are not after"
            )
    return notes


def _compare_experiment(
    config: FusionConfig, old_layer: Layer, old: Experiment, new_layer: Layer, new: Experiment
) -> list[str]:
    notes: list[str] = []
    dealt = _dealing(old_layer, old)
    now = _dealing(new_layer, new)
    if new.phase < old.phase:
        raise _phase_needed(config, new_layer, new, "phase", f"{old.phase} → {new.phase}", old.phase + 1)
    if new.phase != old.phase:
        notes.append(f"experiment {new.name}: phase {old.phase} → {new.phase}, all users are dealt anew")
    elif "running" in (old.status, new.status) and old.status != "draft":
        for what in dealt:
            if dealt[what] != now[what]:
                raise _phase_needed(config, new_layer, new, what, f"{dealt[what]} → {now[what]}", new.phase + 1)
    if old.status != new.status:
        notes.append(f"experiment {new.name}: {old.status} → {new.status}")
    if old.traffic != new.traffic and new.phase == old.phase:
        moves = "users join" if new.traffic > old.traffic else "users leave"
        notes.append(
            f"experiment {new.name}: traffic {old.traffic:.2%} → {new.traffic:.2%}, "
            f"{abs(new.traffic - old.traffic):.2%} of the slice's {moves}, nobody changes variant"
        )
    if old.when != new.when:
        notes.append(f"experiment {new.name}: condition {old.when} → {new.when}, users join or leave")
    for first, second in zip(old.variants, new.variants, strict=False):
        if (first.policy, first.patch) != (second.policy, second.patch) and first.name == second.name:
            notes.append(f"experiment {new.name}: what {second.name!r} does changed; its figures before are not after")
    return notes


def _dealing(layer: Layer, experiment: Experiment) -> dict[str, object]:
    """Return all that decides which variant a user has, phase, traffic and condition aside."""
    return {
        "layer": layer.salt or layer.name,
        "slice": list(experiment.slice),
        "variants": [variant.name for variant in experiment.variants],
        "weights": [variant.weight for variant in experiment.variants],
    }


def _phase_needed(
    config: FusionConfig, layer: Layer, experiment: Experiment, what: str, change: str, phase: int
) -> PhaseNeeded:
    path = ("layers", config.layers.index(layer), "experiments", layer.experiments.index(experiment))
    place = config.error((*path, what if what in ("slice", "phase") else "variants"), found="", expected="")
    why = "its users were dealt that way before" if what == "phase" else "the change moves users between variants"
    return PhaseNeeded(
        f"experiment {experiment.name!r}, {what}",
        found=change if what == "phase" else f"{change} in running phase {experiment.phase}",
        expected=f"phase {phase}: {why}",
        file=place.file,
        line=place.line,
    )
