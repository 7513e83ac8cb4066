from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service import tally
from service.metrics import SECONDS, Metrics
from service.record import Record
from service.tally import Tallies, TimedStage


def samples(metric):
    found = {(sample.name.removeprefix(metric.name), str(sample.labels)): sample.value for sample in metric.samples}
    return {key: value for key, value in found.items() if key[0] != "_created"}


@pytest.fixture(params=["compiled", "prometheus-client"])
def either(request, monkeypatch, compiled_tally):
    monkeypatch.setattr(tally, "compiled", compiled_tally if request.param == "compiled" else None)


@given(
    amounts=st.lists(st.floats(0, 5) | st.sampled_from(SECONDS), min_size=1, max_size=30),
    scraped_after=st.sets(st.integers(0, 29)),
)
def test_tallies_count_what_prometheus_client_counts(compiled_tally, amounts, scraped_after):
    registry, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies()
    registry.register(tallies)
    tallied, observed = (Histogram("a", "seconds", buckets=SECONDS, registry=r) for r in (registry, theirs))
    counted, counts = (Counter("b", "things", registry=r) for r in (registry, theirs))
    seconds, things = tallies.observations(tallied), tallies.count(counted)
    for at, amount in enumerate(amounts):
        seconds.observe(amount)
        observed.observe(amount)
        things.inc(amount)
        counts.inc(amount)
        if at in scraped_after:
            list(registry.collect())
    for ours, other in zip(registry.collect(), theirs.collect(), strict=True):
        assert samples(ours) == pytest.approx(samples(other), rel=1e-12)


def test_a_scrape_shows_all_that_was_counted_before_it(either):
    registry = CollectorRegistry()
    tallies = Tallies()
    registry.register(tallies)
    counter = tallies.count(Counter("things", "things", registry=registry))
    shown = {"value": 3}
    tallies.show(Gauge("level", "level", registry=registry), lambda: shown["value"])
    counter.inc()
    counter.inc(2)
    assert registry.get_sample_value("things_total") == 3 and registry.get_sample_value("level") == 3
    shown["value"] = 1
    counter.inc()
    assert registry.get_sample_value("things_total") == 4 and registry.get_sample_value("level") == 1


def test_nothing_is_lost_or_counted_twice_between_threads(either):
    registry = CollectorRegistry()
    tallies = Tallies()
    counter = tallies.count(Counter("things", "things", registry=registry))
    seconds = tallies.observations(Histogram("seconds", "seconds", registry=registry))

    def count():
        for _ in range(5000):
            counter.inc()
            seconds.observe(0.5)

    def settle():
        while not done.is_set():
            tallies.settle()

    done = threading.Event()
    counting = [threading.Thread(target=count) for _ in range(4)]
    settling = [threading.Thread(target=settle) for _ in range(2)]
    for thread in (*counting, *settling):
        thread.start()
    for thread in counting:
        thread.join()
    done.set()
    for thread in settling:
        thread.join()
    tallies.settle()
    assert registry.get_sample_value("things_total") == 20_000
    assert registry.get_sample_value("seconds_count") == 20_000
    assert registry.get_sample_value("seconds_sum") == 10_000


def test_bounds_without_a_last_one_are_refused(compiled_tally):
    for bounds in ([], [1.0, 2.0]):
        with pytest.raises(ValueError, match="expected the last one to be infinity"):
            compiled_tally.Observations(bounds)


def test_the_compiled_stage_and_the_other_note_the_same(compiled_tally):
    for kind, seconds in (
        (compiled_tally.Stage, compiled_tally.Observations([float("inf")])),
        (TimedStage, Histogram("seconds", "seconds", registry=None)),
    ):
        stages = []
        with kind("parse", stages, seconds):
            pass
        with pytest.raises(KeyError), kind("predict", stages, seconds):
            raise KeyError
        assert [name for name, _, _ in stages] == ["parse", "predict"]
        assert stages[0][1] <= stages[0][2] <= stages[1][1] <= stages[1][2]


def test_a_stage_is_noted_in_its_record_and_timed():
    metrics = Metrics(CollectorRegistry())
    record = Record(metrics)
    with record.stage("parse"):
        pass
    (name, start, end) = record.stages[0]
    assert name == "parse"
    assert metrics.registry.get_sample_value("dlen_rank_stage_seconds_sum", {"stage": "parse"}) == end - start
