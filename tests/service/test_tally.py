from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values

from service import tally
from service.metrics import SECONDS, Metrics, use_slot, workers_registry
from service.record import Record
from service.tally import TalliedRegistry, Tallies, TimedStage


def samples(metric):
    found = {(sample.name.removeprefix(metric.name), str(sample.labels)): sample.value for sample in metric.samples}
    return {key: value for key, value in found.items() if key[0] != "_created"}


@pytest.fixture(params=["compiled", "prometheus-client"])
def either(request, monkeypatch, compiled_tally):
    monkeypatch.setattr(tally, "compiled", compiled_tally if request.param == "compiled" else None)


@pytest.fixture
def slot(tmp_path, monkeypatch):
    """Let metrics lie in a worker's files; return what the supervisor reads of them."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    use_slot(tmp_path, 0)
    return workers_registry(tmp_path).get_sample_value


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


def counted_by(tallies, registry):
    counter = tallies.count(Counter("things", "things", ["kind"], registry=registry).labels("a"))
    level = tallies.level(Gauge("level", "level", registry=registry, multiprocess_mode="sum"))
    seconds = tallies.observations(Histogram("seconds", "seconds", buckets=SECONDS, registry=registry))
    return counter, level, seconds


def test_a_scrape_shows_all_that_was_counted_before_it(either):
    registry = CollectorRegistry()
    tallies = Tallies()
    registry.register(tallies)
    counter, level, seconds = counted_by(tallies, registry)
    value = registry.get_sample_value
    for times in (1, 2):
        counter.inc()
        counter.inc(2)
        level.set(7 - times)
        seconds.observe(0.5)
        assert value("things_total", {"kind": "a"}) == 3 * times
        assert value("level") == 7 - times
        assert value("seconds_sum") == 0.5 * times and value("seconds_bucket", {"le": "0.5"}) == times


def test_metrics_asked_for_by_name_show_all_that_was_counted(either):
    registry = TalliedRegistry()
    tallies = Tallies()
    registry.register(tallies)
    counter, *_ = counted_by(tallies, registry)
    counter.inc()
    text = generate_latest(registry.restricted_registry(["things_total"])).decode()
    assert 'things_total{kind="a"} 1.0' in text and "seconds" not in text


def test_a_workers_counts_lie_in_its_files_at_once(slot, either):
    counter, level, seconds = counted_by(Tallies(), CollectorRegistry())
    counter.inc()
    counter.inc(2)
    level.set(4)
    seconds.observe(0.5)
    seconds.observe(0.1)
    assert slot("things_total", {"kind": "a"}) == 3 and slot("level") == 4
    assert slot("seconds_sum") == 0.6 and slot("seconds_count") == 2
    assert [slot("seconds_bucket", {"le": le}) for le in ("0.05", "0.1", "0.25", "0.5")] == [0, 1, 1, 2]
    counter.inc()
    assert slot("things_total", {"kind": "a"}) == 4


def test_a_worker_that_takes_a_dead_ones_slot_counts_on_where_it_was(slot, tmp_path, compiled_tally):
    for times in (1, 2):
        use_slot(tmp_path, 0)  # opens the files anew, as another process does
        counter, _, seconds = counted_by(Tallies(), CollectorRegistry())
        counter.inc()
        seconds.observe(0.5)
        assert slot("things_total", {"kind": "a"}) == times and slot("seconds_sum") == 0.5 * times


def test_a_file_that_grows_keeps_what_was_counted_and_is_counted(slot, tmp_path, compiled_tally):
    registry = CollectorRegistry()
    things = Counter("things", "things", ["kind"], registry=registry)
    tallies = Tallies()
    counter = tallies.count(things.labels("first"))
    counter.inc()
    size = (tmp_path / "counter_slot0.db").stat().st_size
    others = 0
    while (tmp_path / "counter_slot0.db").stat().st_size == size:
        things.labels("x" * 50_000 + str(others)).inc()
        others += 1
    counter.inc()
    assert slot("things_total", {"kind": "first"}) == 2
    assert slot("things_total", {"kind": "x" * 50_000 + str(others - 1)}) == 1


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


def places(count, numbers=1):
    return [memoryview(bytearray(8 * numbers)).cast("d") for _ in range(count)]


@pytest.mark.parametrize(
    ("bounds", "given", "message"),
    [
        ([], places(1), "expected the last one to be infinity"),
        ([1.0, 2.0], places(3), "expected the last one to be infinity"),
        ([1.0, float("inf")], places(2), "places: found 2, expected 3"),
        ([1.0, float("inf")], places(3, numbers=2), "place: found 2 numbers, expected 1"),
        ([1.0, float("inf")], [memoryview(bytes(8)).cast("d")] * 3, "not writable"),
        ([1.0, float("inf")], [memoryview(bytearray(8)).cast("q")] * 3, "expected 'double'"),
    ],
)
def test_what_does_not_fit_a_histogram_is_refused(compiled_tally, bounds, given, message):
    with pytest.raises((ValueError, BufferError), match=message):
        compiled_tally.Observations(bounds, given)


def test_what_is_not_one_number_is_refused(compiled_tally):
    with pytest.raises(ValueError, match="place: found 2 numbers, expected 1"):
        compiled_tally.Count(places(1, numbers=2)[0])


def test_the_compiled_stage_and_the_other_note_the_same(compiled_tally):
    for kind, seconds in (
        (compiled_tally.Stage, compiled_tally.Observations([float("inf")], places(2))),
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
