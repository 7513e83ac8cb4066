"""Each scenario's judgement fails where its promise is broken, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.compare import Ratio
from loadtest.drive import DISCONNECTED
from loadtest.measure import measure
from loadtest.scenarios import (
    bad_bundles,
    clock_jump,
    config_swaps,
    freeze,
    kill_replica,
    rolling_restart,
    slow_clients,
    worker_sigkill,
    worker_sigstop,
)
from loadtest.scenarios.forgeries import FORGERIES
from loadtest.scenarios.readers import Seen
from loadtest.scenarios.scenario import ScenarioResult, at_least, at_most, equal
from loadtest.scenarios.swapping import SWAPPERS
from tests.loadtest.outcomes import LOST, SLOW, failing, outcome


def test_a_result_passes_only_if_there_are_checks_and_all_pass():
    good, bad = equal("a", 1, 1), at_most("b", 2, 1)
    assert ScenarioResult((good,)).passed
    assert not ScenarioResult((good, bad)).passed
    assert not ScenarioResult(()).passed


@pytest.mark.parametrize("check", [at_most("a", float("nan"), 1), at_least("a", float("nan"), 1)])
def test_what_is_not_known_fails(check):
    assert not check.passed


KILLS = [worker_sigkill.Kill(5.01, 3.0), worker_sigkill.Kill(8.0, 3.0)]
KILL_FACTS = worker_sigkill.Facts(counted=999, restarts=2, in_flight=0)


@pytest.mark.parametrize(
    ("found", "kills", "facts", "broken"),
    [
        (outcome(LOST), KILLS, KILL_FACTS, 0),
        (outcome((900, DISCONNECTED, 0.02)), KILLS, KILL_FACTS, "not in flight"),
        (outcome((500, 503, 0.005)), [worker_sigkill.Kill(7.0, 3.0)] * 2, KILL_FACTS, "not in flight"),
        (outcome(LOST), [KILLS[0], worker_sigkill.Kill(8.0, float("nan"))], KILL_FACTS, "slowest replacement"),
        (outcome(LOST), KILLS, replace(KILL_FACTS, restarts=1), "workers replaced"),
        (outcome(LOST), KILLS, replace(KILL_FACTS, counted=998), "answers 200"),
        (outcome(LOST), KILLS, replace(KILL_FACTS, counted=1001), "answers 200"),
        (outcome(LOST), KILLS, replace(KILL_FACTS, in_flight=3), "in flight after"),
    ],
)
def test_a_killed_workers_promise(found, kills, facts, broken):
    names = failing(worker_sigkill.checks(found, kills, facts))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]


STOP_FACTS = worker_sigstop.Facts(2, 0.1, 12.0, 10.0, 0, 1)


@pytest.mark.parametrize(
    ("found", "facts", "broken"),
    [
        (outcome(LOST, (501, DISCONNECTED, 1.0)), STOP_FACTS, 0),
        (outcome(*[(n, DISCONNECTED, 1.0) for n in (1, 2, 3)]), STOP_FACTS, "failed"),
        (outcome((1, 200, 4.0)), STOP_FACTS, "longest"),
        (outcome(), replace(STOP_FACTS, back_s=float("nan")), "serves again"),
        (outcome(), replace(STOP_FACTS, restarts_short=1), "a hang that ended"),
        (outcome(), replace(STOP_FACTS, replaced_after_s=float("nan")), "one that hangs"),
        (outcome(), replace(STOP_FACTS, restarts=0), "by the metrics"),
    ],
)
def test_a_hanging_workers_promise(found, facts, broken):
    names = failing(worker_sigstop.checks(found, facts))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]


def test_a_freeze_that_the_percentiles_hide_fails():
    frozen = outcome(*[(200 + n, 200, (100 - n) / 100) for n in range(100)])
    assert failing(freeze.checks(measure(frozen, 0.0, 10.0), 1.0)) == []
    hidden = failing(freeze.checks(measure(outcome((200, 200, 1.0)), 0.0, 10.0), 1.0))
    assert hidden == ["p99 shows the freeze"]
    assert "requests not answered 2xx" in failing(freeze.checks(measure(outcome(LOST), 0.0, 10.0), 1.0))


def swap_facts(**changes):
    seconds = {name: [0.3, 0.4] for name in SWAPPERS}
    return replace(config_swaps.Facts(seconds, {"v1", "v2", "v3"}, broken=2, refused=4), **changes)


SEEN = Seen(answers=9, rankings={"v1": {"a"}, "v2": {"b"}, "v3": {"c"}})


@pytest.mark.parametrize(
    ("found", "seen", "facts", "broken"),
    [
        (outcome(), SEEN, swap_facts(), 0),
        (outcome((1, 500, 0.01)), SEEN, swap_facts(), "failed requests"),
        (outcome(), replace(SEEN, failures=["503"]), swap_facts(), "answers read"),
        (outcome(), replace(SEEN, rankings={**SEEN.rankings, "v1": {"a", "x"}}), swap_facts(), "two ways"),
        (outcome(), replace(SEEN, rankings={**SEEN.rankings, "v1": {"b"}}), swap_facts(), "two ways"),
        (outcome(), replace(SEEN, rankings={**SEEN.rankings, "bad": {"x"}}), swap_facts(), "never good"),
        (outcome(), replace(SEEN, rankings={"v1": {"a"}}), swap_facts(), "versions seen"),
        (outcome(), SEEN, swap_facts(seconds={"rename": [0.2, 1.2, 0.1], "ConfigMap": []}), "slowest swap"),
        (outcome(), SEEN, swap_facts(refused=3), "refused"),
        (outcome(), SEEN, swap_facts(astray=1), "moved a worker"),
        (outcome(), SEEN, swap_facts(errors_500=1), "answers 500"),
    ],
)
def test_the_promise_about_swapped_configs(found, seen, facts, broken):
    names = failing(config_swaps.checks(found, seen, facts))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]


BUNDLES = bad_bundles.Facts({FORGERIES[0]: 2}, {"1"}, [], 1.0)


@pytest.mark.parametrize(
    ("found", "facts", "broken"),
    [
        (outcome(), BUNDLES, 0),
        (outcome(), replace(BUNDLES, refused={FORGERIES[0]: 1}), "no manifest"),
        (outcome(), replace(BUNDLES, refused={FORGERIES[0]: 4}), "no manifest"),
        (outcome(LOST), BUNDLES, "failed requests"),
        (outcome(), replace(BUNDLES, failures=["degraded"]), "answers read"),
        (outcome(), replace(BUNDLES, versions={"1", "2"}), "versions in answers"),
        (outcome(), replace(BUNDLES, good_after_s=float("nan")), "a good version"),
    ],
)
def test_the_promise_about_bad_bundles(found, facts, broken):
    names = failing(bad_bundles.checks(found, facts, "1"))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]


@pytest.mark.parametrize(
    ("found", "asked_twice", "rescued", "broken"),
    [
        (outcome(), 3, 3, []),
        (outcome(LOST), 3, 3, ["failed requests"]),
        (outcome((900, 503, 0.005)), 3, 3, ["failed requests", "of these not in flight at a kill"]),
        (outcome(), 0, 0, ["requests that nginx asked of both replicas"]),
        (outcome(), 3, 2, ["of these answered 200"]),
        (outcome(SLOW), 3, 3, ["longest answer"]),
    ],
)
def test_a_killed_replicas_promise(found, asked_twice, rescued, broken):
    assert failing(kill_replica.checks(found, [5.01], asked_twice, rescued)) == broken


@pytest.mark.parametrize(
    ("found", "restarts", "broken"),
    [
        (outcome(), 12, []),
        (outcome((3, 503, 0.01)), 12, ["failed requests"]),
        (outcome(SLOW), 12, ["longest answer"]),
        (outcome(), 11, ["replicas restarted"]),
    ],
)
def test_the_promise_about_rolling_restarts(found, restarts, broken):
    assert failing(rolling_restart.checks(found, restarts, 12)) == broken


RATIO = Ratio("p99_ms", 10, 11, 1.1, 1.0, 1.2, 0.3, "no difference shown", (1.0, 1.1, 9.0))


@pytest.mark.parametrize(
    ("ratio", "failed", "strayed", "left", "broken"),
    [
        (RATIO, 0, 0, 500, 0),
        (replace(RATIO, by_round=(1.0, 1.3, 1.4)), 0, 0, 500, "p99"),
        (RATIO, 1, 0, 500, "failed"),
        (RATIO, 0, 1, 500, "reached a ranker"),
        (RATIO, 0, 0, 300, "open to the end"),
    ],
)
def test_the_promise_about_slow_clients(ratio, failed, strayed, left, broken):
    names = failing(slow_clients.checks(ratio, failed, strayed, left, 500))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]


CLOCK = clock_jump.Facts([clock_jump.Jump(3600, 3599, 0.3), clock_jump.Jump(-86400, -86400, 0.3)], 0.003, 2.5)


@pytest.mark.parametrize(
    ("found", "facts", "broken"),
    [
        (outcome(), CLOCK, 0),
        (outcome(), replace(CLOCK, jumps=[clock_jump.Jump(3600, 0, 0.3)]), "missed"),
        (outcome((1, 504, 0.01)), CLOCK, "failed"),
        (outcome(SLOW), CLOCK, "longest"),
        (outcome(), replace(CLOCK, jumps=[clock_jump.Jump(3600, 3600, float("inf"))]), "config swap"),
        (outcome(), replace(CLOCK, mean_request_s=-3.0), "no less than"),
        (outcome(), replace(CLOCK, mean_request_s=3.0), "no more than"),
        (outcome(), replace(CLOCK, end_s=1.0), "no less than"),
        (outcome(), replace(CLOCK, end_s=60.0), "no more than"),
    ],
)
def test_the_promise_about_clocks(found, facts, broken):
    names = failing(clock_jump.checks(found, facts))
    assert names == [] if not broken else len(names) == 1 and broken in names[0]
