"""The verdicts of `soak`: figures that grow and figures that do not, and each other promise broken in turn."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.drive import Outcome
from loadtest.report import json_bytes
from loadtest.scenarios import soak
from loadtest.scenarios.changes import changed_configs, users_of
from loadtest.scenarios.flat import Series, flat_check, trend
from loadtest.scenarios.resources import Held, Sampler, Samples, held_by
from loadtest.scenarios.soak_plot import plot_soak

AT_S = tuple(np.arange(0, 1800, 5.0).tolist())


def series(values: object, **changes: object) -> Series:
    made = Series("memory", "MiB", AT_S, tuple(np.broadcast_to(values, len(AT_S)).tolist()), 4.0, 0.03)
    return replace(made, **changes)


def noise(scale: float) -> np.ndarray:
    return np.random.default_rng(1).normal(0, scale, len(AT_S))


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        (200 + noise(5), True),
        (200 + np.asarray(AT_S) / 1800 * 20 + noise(5), False),  # 20 MiB over the run
        (200 + np.asarray(AT_S) / 1800 * 5 + noise(5), True),  # 4 MiB of what counts
        (200 - np.asarray(AT_S) / 1800 * 50, True),  # what shrinks is no leak
        (150 + 50 * np.minimum(np.asarray(AT_S) / 300, 1), True),  # warm-up
        (200 + 3 * np.floor(np.asarray(AT_S) / 75), False),  # a version kept at each swap
        (200 + 40 * (np.asarray(AT_S) % 75 < 20), True),  # a second version while they change
        (200 + 200 * (np.arange(len(AT_S)) % 50 == 0), True),  # outliers
        (float("nan"), False),
    ],
)
def test_flat_or_not(values, flat):
    assert flat_check(series(values)).passed is flat


def test_too_few_samples_are_not_flat():
    assert not flat_check(replace(series(1.0), at_s=AT_S[:3], values=(1.0, 1.0, 1.0))).passed


@settings(max_examples=30, deadline=None)
@given(start=st.floats(1, 1e4), per_hour=st.floats(-1e3, 1e3))
def test_the_trend_of_a_line_is_its_slope(start, per_hour):
    found = trend(series(start + per_hour * np.asarray(AT_S) / 3600))
    assert found.per_hour == pytest.approx(per_hour, abs=1e-6)
    assert found.growth == pytest.approx(per_hour * (1795 - 360) / 3600, rel=0.01, abs=1e-6)


def load(count: int = 3600, status: int = 200) -> Outcome:
    send_ns = (np.arange(count) / count * 1800e9).astype(np.int64)
    latency_ns = np.full(count, 5_000_000)
    return Outcome(send_ns, latency_ns, np.zeros(count, np.int64), np.full(count, status, np.int16), 9)


def samples(**changes: float) -> Samples:
    held = [{1: Held(100, 70, 60, 15, 5), 2: Held(150, 110, 90, 30, 7)} for _ in AT_S]
    for at in range(len(AT_S)):
        grown = {name: getattr(held[at][2], name) + by * at / len(AT_S) for name, by in changes.items()}
        held[at][2] = replace(held[at][2], **grown)
    return Samples(list(AT_S), held, [256.0] * len(AT_S))


GOOD = soak.Facts(
    pids=(1, 2), samples=samples(), load=load(), churned=9000, refused=0, configs=900, models=23, exposures=1000,
    load_failures=0, serving="model 24, config variation 3", wanted="model 24, config variation 3",
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (replace(GOOD, samples=samples(rss_mb=20)), "worker 1: resident memory stays flat"),
        (replace(GOOD, samples=samples(own_mb=20)), "worker 1: memory of its own stays flat"),
        (replace(GOOD, samples=samples(descriptors=10)), "worker 1: descriptors stays flat"),
        (replace(GOOD, samples=samples(threads=2)), "worker 1: threads stays flat"),
        (
            replace(GOOD, samples=Samples(list(AT_S), samples().held, np.linspace(250, 400, len(AT_S)).tolist())),
            "series shown stays flat",
        ),
        (replace(GOOD, load=load(status=503)), "requests not answered 2xx"),
        (replace(GOOD, refused=1), "connections that were not taken"),
        (replace(GOOD, pids=(1, 3)), "processes in the end are those of the start"),
        (replace(GOOD, load_failures=1), "versions refused"),
        (replace(GOOD, serving="model 23, config variation 3"), "serves in the end"),
        (replace(GOOD, exposures=0), "exposures of experiments"),
    ],
)
def test_each_broken_promise_is_named(facts, name):
    assert all(check.passed for check in soak.checks(GOOD))
    assert name in [check.name for check in soak.checks(facts) if not check.passed]
    json_bytes(soak.figures(facts))


def test_a_picture_is_drawn():
    assert plot_soak(soak.series_of(GOOD), [75.0, 150.0]).startswith(b"\x89PNG")


def test_changed_configs_differ_and_hold_an_experiment_of_half_the_users():
    text = "format: 1\ndefault: feed\npolicies: {feed: {formula: weighted_sum, weights: {click: 1.0}, p_up: 0.5}}\n"
    configs = changed_configs(text, 5)
    assert len(set(configs)) == 5
    documents = [yaml.safe_load(config) for config in configs]
    assert [document["policies"]["feed"]["p_up"] for document in documents] == [0.5, 0.501, 0.502, 0.503, 0.504]
    assert documents[0]["layers"][0]["experiments"][0]["traffic"] == 0.5


def test_requests_of_many_users():
    made = [json.loads(body) for body in users_of([b'{"user": {"id": "a", "features": {"x": 1}}}'], 3)]
    assert [one["user"] for one in made] == [{"id": f"soak-{n}", "features": {"x": 1}} for n in range(3)]


def test_a_sampler_sees_this_process_and_survives_one_that_is_gone():
    gone = 2**22 + 1
    with Sampler(lambda: [os.getpid(), gone], 0, lambda: 7.0, 0.01) as sampler:
        while len(sampler.samples.at) < 3:
            pass
    held = sampler.samples.held[0]
    assert gone not in held and sampler.samples.counted[0] == 7.0
    assert held[os.getpid()].rss_mb >= held[os.getpid()].pss_mb > 1
    assert held[os.getpid()].rss_mb > held[os.getpid()].own_mb > 1
    assert held_by(os.getpid()).descriptors >= 3 and held[os.getpid()].threads >= 2


def test_live_connections_are_no_descriptors_of_the_server_and_dead_ones_are():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        before = held_by(os.getpid(), port).descriptors
        client = socket.create_connection(("127.0.0.1", port))
        taken, _ = listening.accept()
        with client, taken:
            assert held_by(os.getpid(), port).descriptors == before + 1  # the client's end, which is here too
            client.close()
            assert held_by(os.getpid(), port).descriptors == before + 1  # the one that was not closed
