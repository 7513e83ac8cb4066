"""Metrics that carry a model's or a config's version: shown while it serves and a little longer, then forgotten.

The files that prometheus_client keeps for several workers cannot forget a label, so a process that lives long would
hold, and its supervisor read, each version it ever served. Here a worker's values lie in blocks, each a fixed list of
series with one float64 a series; with several workers a block is a file that its worker writes in place, and that the
supervisor reads at each scrape. A worker that takes a dead one's slot goes on counting where that one was.

A block's file: the length of the head, 8 bytes little-endian; the head, JSON, filled with spaces up to a multiple of 8
bytes; the values.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]
Series = tuple[str, Labels]
"""A family's name and the values of its labels."""


class Family(NamedTuple):
    """Series of one name.

    Attributes:
        help: what it says, as shown to who scrapes.
        labels: the names of its labels.
        counts: whether it is a counter, summed over the workers, or else a gauge, of which the greatest is shown.
    """

    help: str
    labels: Labels
    counts: bool


FAMILIES = {
    "dlen_model_info": Family("1 for each model version that serves.", ("model", "version"), False),
    "dlen_config_info": Family("1 for the fusion config that serves.", ("version",), False),
    "dlen_experiment_planned_share": Family(
        "Share of an experiment's requests that the config means each variant to rank.",
        ("layer", "experiment", "phase", "variant"),
        False,
    ),
    "dlen_model_probabilities": Family(
        "Predicted P(task) of a sample of requests, by bins with these upper edges.",
        ("model", "version", "task", "bin"),
        True,
    ),
    "dlen_model_reference_share": Family(
        "Share of P(task) in each bin on the rows that the model was validated on.",
        ("model", "version", "task", "bin"),
        False,
    ),
    "dlen_rank_scores": Family(
        "Fused scores of a sample of requests, by bins with these upper edges.", ("model", "version", "bin"), True
    ),
}


class VersionedMetrics(Collector):
    """The blocks of one worker."""

    def __init__(self, prefix: Path | None = None) -> None:
        """Show nothing yet.

        Args:
            prefix: how the paths of this worker slot's files begin; without it values stay in memory.
        """
        self._prefix = prefix
        self._blocks: dict[Labels, tuple[Sequence[Series], memoryview[float]]] = {}
        self._changing = Lock()
        self._left_behind = set() if prefix is None else set(_files_of(prefix))

    def show(self, key: Labels, values: Mapping[Series, float]) -> None:
        """Show these gauges under `key`, instead of those that were shown under it before."""
        self._open(key, tuple(values), array("d", values.values()), resume=False)

    def count(self, key: Labels, series: Sequence[Series]) -> memoryview[float]:
        """Show these counters under `key` and return their values, to be raised in place.

        They begin where they were under this key in this slot, or else at 0.
        """
        if key not in self._blocks:
            self._open(key, series, array("d", bytes(8 * len(series))), resume=True)
        return self._blocks[key][1]

    def values(self, key: Labels) -> memoryview[float] | None:
        """Return the values shown under `key`, or None."""
        found = self._blocks.get(key)
        return None if found is None else found[1]

    def drop(self, key: Labels) -> None:
        """Show no longer what is shown under `key`."""
        with self._changing:
            self._blocks = {known: block for known, block in self._blocks.items() if known != key}
            if self._prefix is not None:
                _file(self._prefix, key).unlink(missing_ok=True)

    def drop_left_behind(self) -> None:
        """Remove what a dead worker of this slot showed and this one, all loaded by now, does not."""
        for file in self._left_behind:
            file.unlink(missing_ok=True)
        self._left_behind.clear()

    def collect(self) -> Iterator[Metric]:
        """Yield every family, whether or not it has series."""
        return _families((series, list(values)) for series, values in self._blocks.values())

    def _open(self, key: Labels, series: Sequence[Series], start: array[float], *, resume: bool) -> None:
        values = memoryview(bytearray(start.tobytes())).cast("d")
        if self._prefix is not None:
            file = _file(self._prefix, key)
            head = json.dumps(series, separators=(",", ":")).encode()
            head += b" " * (-len(head) % 8)
            if not (resume and _head_of(file) == head):
                aside = file.with_suffix(".aside")
                aside.write_bytes(struct.pack("<Q", len(head)) + head + start.tobytes())
                aside.replace(file)
            self._left_behind.discard(file)
            with file.open("r+b") as opened:
                values = memoryview(mmap.mmap(opened.fileno(), 0))[8 + len(head) :].cast("d")
        with self._changing:
            self._blocks = {**self._blocks, key: (series, values)}


def collect_workers(folder: Path) -> list[Metric]:
    """Return every family summed over the blocks of all workers whose files lie in `folder`.

    Of model versions only those that some worker still serves are shown: one that has let a version go would
    otherwise let a sum of counters fall.
    """
    blocks = [block for file in sorted(folder.glob("*.block")) if (block := _read(file)) is not None]
    served = {labels for series, _ in blocks for name, labels in series if name == "dlen_model_info"}
    metrics = list(_families(blocks))
    for metric in metrics:
        if {"model", "version"} <= set(FAMILIES[metric.name].labels):
            metric.samples = [s for s in metric.samples if (s.labels["model"], s.labels["version"]) in served]
    return metrics


def _families(blocks: Iterable[tuple[Sequence[Series], Sequence[float]]]) -> Iterator[Metric]:
    found: dict[str, dict[Labels, float]] = {name: {} for name in FAMILIES}
    for series, values in blocks:
        for (name, labels), value in zip(series, values, strict=True):
            known = found[name].get(labels)
            merged = value if known is None else known + value if FAMILIES[name].counts else max(known, value)
            found[name][labels] = merged
    for name, family in FAMILIES.items():
        kind = CounterMetricFamily if family.counts else GaugeMetricFamily
        metric = kind(name, family.help, labels=family.labels)
        for labels, value in found[name].items():
            metric.add_metric(labels, value)
        yield metric


def _file(prefix: Path, key: Labels) -> Path:
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return prefix.with_name(f"{prefix.name}-{name}.block")


def _files_of(prefix: Path) -> Iterator[Path]:
    return prefix.parent.glob(f"{prefix.name}-*.block")


def _head_of(file: Path) -> bytes | None:
    """Return a block file's head, or None if there is no such file."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            return opened.read(length)
    except FileNotFoundError:
        return None


def _read(file: Path) -> tuple[list[Series], list[float]] | None:
    """Return a block's series and values, or None if its worker has just dropped it."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    (length,) = struct.unpack_from("<Q", data)
    values = array("d", data[8 + length :])
    return [(name, tuple(labels)) for name, labels in json.loads(data[8 : 8 + length])], values.tolist()
