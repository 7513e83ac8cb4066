"""A network's initial weights from a finished run of other data: what fits is carried over by meaning, not by place.

Embedding rows go by feature and value, columns of the layers that read the input by feature, towers and gates by task,
PLE's experts by whose they are; every other layer if name and shape agree. The rest keeps its initial values.
Legend: T tasks, K input width, E experts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from bundle.features import FeatureSchema
from training.errors import RunInvalid
from training.models.network import Network
from training.models.places import Place, codes_of, common_codes, places
from training.run import FEATURES_FILE, MODEL_FILE, RUN_FILE, Run, read_run
from training.tensors import read_rows

Index = NDArray[np.int64]
Pairs = tuple[Index, Index]
"""Old and new numbers of what is the same thing in both networks."""

_TABLES = "inputs.tables."
_NOT_LEARNED = ("inputs.offsets", "head.alpha")
_READS_INPUT = re.compile(
    r"backbone\.(levels\.0\.)?(experts\.weights\.0|gates\.weight|shared_gate\.weight|bottoms?\.weights\.0)"
    r"|head\.(latent|dwell\.tower)\.weights\.0|wide\.weight"
)
_PER_TASK = re.compile(
    r"head\.(towers\..*|weight|bias(_[fg])?)|backbone\.(levels\.\d+\.)?gates\..*|backbone\.bottoms\..*"
)
_PER_EXPERT = re.compile(r"backbone\.levels\.\d+\.experts\..*")
_TO_TASKS = re.compile(r"wide\.weight")
_TO_EXPERTS = re.compile(r"backbone\.levels\.\d+\.shared_gate\..*")
_NAMES_SHOWN = 5


@dataclass
class Carried:
    """What a network took from a run and what it did not, by name.

    Attributes:
        rows: embedding rows taken.
        all_rows: those that there are.
    """

    rows: int = 0
    all_rows: int = 0
    features: list[str] = field(default_factory=list)
    other_features: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    other_layers: list[str] = field(default_factory=list)

    def lines(self, start: Path) -> Iterator[str]:
        """Yield one line of what was taken, and one of what was not, if anything."""
        features, layers = len(self.features), len(self.layers)
        yield (
            f"start from {start}: {features} of {features + len(self.other_features)} features ({self.rows:,} of "
            f"{self.all_rows:,} embedding rows), {layers} of {layers + len(self.other_layers)} layers, "
            f"tasks {', '.join(self.tasks) or 'none'}"
        )
        left = {"features": self.other_features, "tasks": self.other_tasks, "layers": self.other_layers}
        if any(left.values()):
            yield "at initial values: " + "; ".join(f"{kind} {_some(names)}" for kind, names in left.items() if names)


def start_digest(folder: Path, schema: FeatureSchema) -> str:
    """Return the digest of everything that a start of a network for `schema` takes from a run.

    Raises:
        RunInvalid: there is no such run, it is not finished, or none of its features compares.
    """
    old = _finished(folder)
    if not _common_features(places(old.schema), places(schema)):
        raise _nothing_fits(old, schema)
    digest = hashlib.sha256()
    for name in (RUN_FILE, FEATURES_FILE, MODEL_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def carry_over(network: Network, run: Run, start: Path, own_rows: Callable[[int], slice] | None = None) -> Carried:
    """Overwrite the weights of a run's new network by those of the finished run in `start`, where they fit.

    Args:
        network: at initialisation.
        run: the run that it is of.
        start: folder of the other run.
        own_rows: which rows of a table of so many the network holds (default: all).

    Raises:
        RunInvalid: `start` holds no finished run, or nothing of it fits.
    """
    old = _finished(start)
    carried = Carried()
    old_places, new_places = places(old.schema), places(run.schema)
    pairs = _common_features(old_places, new_places)
    carried.features = list(pairs)
    carried.other_features = [name for name in new_places if name not in pairs]
    with torch.no_grad():
        _carry_layers(network, old, run, _columns(pairs, old_places, new_places), carried)
        _carry_rows(network, start / MODEL_FILE, pairs, (old_places, new_places), own_rows, carried)
    if not (carried.layers or carried.rows):
        raise _nothing_fits(old, run.schema)
    return carried


def _finished(folder: Path) -> Run:
    run = read_run(folder)
    if not run.is_finished:
        raise RunInvalid(f"{folder} to start from", found="an unfinished run", expected="a finished one (dlen train)")
    return run


def _nothing_fits(old: Run, schema: FeatureSchema) -> RunInvalid:
    found, wanted = ([feature.name for feature in features] for features in (old.schema.features, schema.features))
    return RunInvalid(
        f"{old.folder} to start from",
        found=f"nothing that fits: features {_some(found)}",
        expected=f"some of {_some(wanted)}, encoded alike, and layers of the same sizes",
    )


def _common_features(old: dict[str, Place], new: dict[str, Place]) -> dict[str, Pairs]:
    """Return, by name, the codes that the features in both share."""
    return {
        name: codes
        for name, place in new.items()
        if name in old and (codes := common_codes(old[name].feature, place.feature)) is not None
    }


def _columns(pairs: dict[str, Pairs], old: dict[str, Place], new: dict[str, Place]) -> Pairs:
    """Return the input columns of the features that compare."""
    empty = [np.empty(0, np.int64)]
    olds, news = ([np.array(at[name].columns, np.int64) for name in pairs] for at in (old, new))
    return np.concatenate(empty + olds), np.concatenate(empty + news)


def _carry_layers(network: Network, old: Run, run: Run, columns: Pairs, carried: Carried) -> None:
    found, _ = read_rows(old.folder / MODEL_FILE, lambda name: slice(0, 0) if name.startswith(_TABLES) else None)
    same_tasks = _positions(_tasks(old), _tasks(run))
    experts = _positions(_experts(old), _experts(run))
    has_towers = False
    for name, tensor in network.state_dict().items():
        if name.startswith(_TABLES) or name in _NOT_LEARNED:
            continue
        axes: dict[int, Pairs] = {}
        if _PER_TASK.fullmatch(name):
            axes[0] = same_tasks
        if _PER_EXPERT.fullmatch(name):
            axes[0] = experts
        if _TO_TASKS.fullmatch(name):
            axes[2] = same_tasks
        if _TO_EXPERTS.fullmatch(name):
            axes[2] = experts
        if _READS_INPUT.fullmatch(name):
            axes[1] = columns
        fits = name in found and _copy(tensor, found[name], axes)
        (carried.layers if fits else carried.other_layers).append(name)
        has_towers |= fits and name.startswith("head.towers")
    names = _tasks(run)
    carried.tasks = [names[at] for at in same_tasks[1]] if has_towers else []
    carried.other_tasks = [name for name in names if name not in carried.tasks]


def _copy(new: Tensor, old: Tensor, axes: dict[int, Pairs]) -> bool:
    """Copy what is the same along the named axes; say whether the other axes agree and there was anything."""
    if new.dim() != old.dim() or any(new.shape[k] != old.shape[k] for k in range(new.dim()) if k not in axes):
        return False
    froms, tos = [], []
    for axis in range(new.dim()):
        from_, to = axes.get(axis, (np.arange(new.shape[axis]),) * 2)
        inside = (from_ < old.shape[axis]) & (to < new.shape[axis])  # habit towers read the first columns only
        shape = [-1 if k == axis else 1 for k in range(new.dim())]
        froms.append(torch.from_numpy(from_[inside]).view(shape))
        tos.append(torch.from_numpy(to[inside]).view(shape))
    new[tuple(to.to(new.device) for to in tos)] = old[tuple(froms)].to(new.device)
    return all(len(to.flatten()) for to in tos)


def _carry_rows(
    network: Network,
    weights: Path,
    pairs: dict[str, Pairs],
    both: tuple[dict[str, Place], dict[str, Place]],
    own_rows: Callable[[int], slice] | None,
    carried: Carried,
) -> None:
    """Copy embedding rows, one feature's at a time: an old table may be larger than what this process may hold."""
    old_places, new_places = both
    carried.all_rows = sum(codes_of(place.feature) for place in new_places.values())
    with safe_open(weights, framework="pt") as file:
        for name, (old_codes, new_codes) in pairs.items():
            if not len(new_codes):
                continue
            old, new, size = old_places[name], new_places[name], new_places[name].feature.embedding_size
            table = network.inputs.tables[str(size)]
            own = own_rows(network.inputs.table_rows[size]) if own_rows else slice(0, len(table))
            rows = new.first_row + new_codes
            here = (rows >= own.start) & (rows < own.stop)
            end = old.first_row + codes_of(old.feature)
            found = file.get_slice(f"{_TABLES}{size}")[old.first_row : end]
            table[torch.from_numpy(rows[here] - own.start).to(table.device)] = found[old_codes[here]].to(table.device)
            carried.rows += len(new_codes)


def _tasks(run: Run) -> tuple[str, ...]:
    return run.description.task_names


def _experts(run: Run) -> list[tuple[str, int]]:
    """Return whose each expert of a PLE level is, "" for a shared one, and its number among them."""
    config = run.description.config.model
    shared = [("", number) for number in range(config.shared_experts)]
    return shared + [(f"of {task}", number) for task in _tasks(run) for number in range(config.task_experts)]


def _positions(old: Sequence[object], new: Sequence[object]) -> Pairs:
    """Return where those that are in both stand in either."""
    common = [thing for thing in new if thing in old]
    olds, news = ([names.index(thing) for thing in common] for names in (old, new))
    return np.array(olds, np.int64), np.array(news, np.int64)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
