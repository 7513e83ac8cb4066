"""Metrics that carry versions, in memory and in the files of several workers."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from service.versioned import FAMILIES, Labels, VersionedMetrics, collect_workers

COUNTER, GAUGE = "dlen_rank_scores", "dlen_model_info"


def shown(metrics: list[Metric]) -> dict[tuple[str, Labels], float]:
    """Return every sample by name and values of labels."""
    return {(s.name, tuple(s.labels.values())): s.value for metric in metrics for s in metric.samples}


def counters(*names: str, version: str = "1") -> list[tuple[str, Labels]]:
    return [(COUNTER, ("tiny", version, name)) for name in names]


def serve(worker: VersionedMetrics, version: str) -> None:
    worker.show(("model", "tiny"), {(GAUGE, ("tiny", version)): 1})


@pytest.mark.parametrize("in_files", [False, True])
def test_what_is_shown_under_a_key_replaces_what_was(in_files, tmp_path):
    metrics = VersionedMetrics(tmp_path / "slot0" if in_files else None)
    serve(metrics, "1")
    serve(metrics, "2")
    assert shown(list(metrics.collect())) == {(GAUGE, ("tiny", "2")): 1}
    metrics.drop(("model", "tiny"))
    assert shown(list(metrics.collect())) == {} and not list(tmp_path.iterdir())


def test_every_family_is_told_of_before_it_has_series():
    registry = CollectorRegistry()
    registry.register(VersionedMetrics())
    assert {metric.name for metric in registry.collect()} == FAMILIES.keys()


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2**40)), max_size=8), min_size=1, max_size=4))
def test_counters_are_summed_over_workers_and_gauges_are_not(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("metrics")
    wanted = dict.fromkeys("abc", 0)
    for slot, events in enumerate(workers):
        worker = VersionedMetrics(folder / f"slot{slot}")
        serve(worker, "1")
        values = worker.count(("d",), counters(*"abc"))
        for name, by in events:
            values["abc".index(name)] += by
            wanted[name] += by
    assert shown(collect_workers(folder)) == {
        (GAUGE, ("tiny", "1")): 1,
        **{(f"{COUNTER}_total", ("tiny", "1", name)): count for name, count in wanted.items()},
    }


def test_a_worker_in_a_dead_ones_slot_counts_on_and_lets_go_of_what_it_does_not_serve(tmp_path):
    dead = VersionedMetrics(tmp_path / "slot0")
    serve(dead, "1")
    dead.count(("d", "1"), counters("a"))[0] = 5
    dead.count(("d", "0"), counters("a", version="0"))[0] = 7
    dead.count(("d", "2"), counters("a", version="2"))[0] = 9
    other = VersionedMetrics(tmp_path / "slot1")
    other.count(("d", "1"), counters("a"))[0] = 10
    heir = VersionedMetrics(tmp_path / "slot0")
    serve(heir, "1")
    assert heir.count(("d", "1"), counters("a"))[0] == 5
    assert heir.count(("d", "2"), counters("a", "b", version="2")).tolist() == [0, 0]  # other series: from 0
    heir.count(("d", "1"), counters("a"))[0] += 1
    heir.drop_left_behind()
    assert shown(collect_workers(tmp_path)) == {(GAUGE, ("tiny", "1")): 1, (f"{COUNTER}_total", ("tiny", "1", "a")): 16}
    assert len(list(tmp_path.glob("slot0*.block"))) == 3
    heir.drop(("d", "2"))
    assert len(list(tmp_path.glob("slot0*.block"))) == 2 and len(list(tmp_path.glob("slot1*.block"))) == 1


def test_a_versions_counters_are_shown_by_all_workers_or_by_none(tmp_path):
    """One that has let a version go first would let the sum fall, which a rate takes for a restart."""
    workers = [VersionedMetrics(tmp_path / f"slot{slot}") for slot in range(2)]
    for worker in workers:
        serve(worker, "1")
        worker.count(("d", "1"), counters("a"))[0] = 4
    one = (f"{COUNTER}_total", ("tiny", "1", "a"))
    serve(workers[0], "2")
    assert shown(collect_workers(tmp_path))[one] == 8
    serve(workers[1], "2")
    assert one not in shown(collect_workers(tmp_path))


def test_ten_thousand_versions_leave_nothing_behind(tmp_path):
    worker = VersionedMetrics(tmp_path / "slot0")
    for version in range(10_000):
        serve(worker, str(version))
        worker.count(("d", str(version)), counters("a", version=str(version)))[0] = 1
        worker.drop(("d", str(version - 1)))
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 2
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert maps.read_text().count(str(tmp_path)) <= 3
    assert (f"{COUNTER}_total", ("tiny", "9999", "a")) in shown(collect_workers(tmp_path))
