"""The frame of the scenarios, and that each scenario's judgement fails where its promise is broken."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundle.read import read_bundle
from cli import main
from loadtest.compare import Ratio
from loadtest.drive import DISCONNECTED, Outcome
from loadtest.errors import KitInvalid, ScenarioUnknown, ServerFailed
from loadtest.measure import measure
from loadtest.scenarios import (
    bad_bundles,
    catalogue,
    clock_jump,
    config_swaps,
    freeze,
    kill_replica,
    rolling_restart,
    slow_clients,
    worker_sigkill,
    worker_sigstop,
)
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.forgeries import FORGERIES, SIGNATURE_FORGERIES, WEIGHT_FORGERIES
from loadtest.scenarios.readers import Seen
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal, timeline_of
from loadtest.scenarios.show import plot_timeline
from loadtest.scenarios.stack import command_path, until
from loadtest.scenarios.swapping import SWAPPERS


def outcome(*changes: tuple[int, int, float], size: int = 1000) -> Outcome:
    """A request each 10 ms, answered 200 after 5 ms; but those of `changes`: (number, status, seconds)."""
    status, latency_s = np.full(size, 200, np.int16), np.full(size, 0.005)
    for number, code, seconds in changes:
        status[number], latency_s[number] = code, seconds
    send_ns = np.arange(size, dtype=np.int64) * 10_000_000
    return Outcome(send_ns, (latency_s * 1e9).astype(np.int64), np.zeros(size, np.int64), status, 4)


def failing(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


LOST = (500, DISCONNECTED, 0.02)
"""Sent at 5.0 s, lost 20 ms later."""
SLOW = (500, 200, 12.0)


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


@pytest.fixture
def request_file(tmp_path):
    path = tmp_path / "request.json"
    path.write_text('{"candidates": [{"id": "a", "features": {"x": 1}}]}')
    return path


def test_the_command_says_pass_fail_and_skip_by_table_json_picture_and_code(
    request_file, tmp_path, capsys, monkeypatch
):
    def run(settings: Settings) -> ScenarioResult:
        checks = (at_most("lost", len(settings.bodies), settings.rate_per_s),)
        return ScenarioResult(checks, {"seed": settings.seed}, timeline_of(outcome(LOST), ((1.0, "hit"),)))

    made = (Scenario("one", "first", run), Scenario("two", "second", run, needs=("no-such-command",)))
    monkeypatch.setattr(catalogue, "SCENARIOS", made)
    words = ["loadtest", "scenario", "all", "--request", str(request_file), "--seed", "7"]
    outputs = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert main([*words, *outputs]) == 0
    said = capsys.readouterr().out
    assert "skipped: not installed: no-such-command" in " ".join(said.split())
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert results["one"]["passed"] and results["one"]["figures"] == {"seed": 7}
    assert results["two"] == {"skipped": "not installed: no-such-command"}
    assert (tmp_path / "a-one.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--rate", "0.5"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["loadtest", "scenario", "two", "--request", str(request_file)]) == 1


def test_a_server_that_fails_is_a_failed_scenario_with_its_log(request_file, capsys, monkeypatch):
    def run(settings: Settings) -> ScenarioResult:
        (settings.folder / "ranker.log").write_text("what the server said last")
        raise ServerFailed("ranker", found="exit code 1", expected="a server")

    monkeypatch.setattr(catalogue, "SCENARIOS", (Scenario("one", "first", run),))
    assert main(["loadtest", "scenario", "one", "--request", str(request_file)]) == 1
    said = capsys.readouterr().out
    assert "what the server said last" in said and "exit code 1" in said


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        [],
        ["freeze", "--rate", "0"],
        ["freeze", "--seed", "-1"],
        ["freeze", "--models", "."],
        ["freeze", "--fusion", "nowhere"],
    ],
)
def test_bad_usage_is_one_line_and_code_2(words, capsys):
    assert main(["loadtest", "scenario", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_list_tells_every_scenario(capsys):
    assert main(["loadtest", "scenario", "list"]) == 0
    said = capsys.readouterr().out
    assert main(["loadtest", "scenario", "--list"]) == 0
    assert capsys.readouterr().out == said
    names = [scenario.name for scenario in catalogue.SCENARIOS]
    assert len(set(names)) == len(names) >= 9
    assert {line.split(" ")[0] for line in said.splitlines()} >= set(names)


def test_every_scenario_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text()
    assert [name.name for name in catalogue.SCENARIOS if f"| `{name.name}` |" not in page] == []


def test_unknown_scenarios_are_refused():
    with pytest.raises(ScenarioUnknown, match="freeze"):
        catalogue.chosen(["freeze", "other"])


def test_a_timeline_is_drawn_even_of_nothing():
    assert plot_timeline("x", timeline_of(outcome(size=0))).startswith(b"\x89PNG")


def test_bodies_are_widened_with_ids_of_their_own():
    body = json.dumps({"candidates": [{"id": "a", "features": {}}, {"id": "b"}], "top_k": 2}).encode()
    settings = Settings(Path(), Path(), (body, b'{"candidates": {"id": []}}'), Path())
    first, other = widened(settings, 7).bodies
    ids = [candidate["id"] for candidate in json.loads(first)["candidates"]]
    assert (len(ids), len(set(ids)), ids[:2]) == (7, 7, ["a", "b"])
    assert other == settings.bodies[1]


def test_a_steady_load_ends_with_its_block_and_keeps_what_was_sent(server, tmp_path):
    settings = Settings(Path(), Path(), (b"{}",), tmp_path, rate_per_s=200)
    with SteadyLoad(settings, f"{server[1]}/ok") as load:
        time.sleep(0.3)
    assert 10 < len(load.outcome.status) == len(load.outcome.send_ns) == len(load.outcome.latency_ns) < 100_000
    assert set(load.outcome.status) == {200}
    assert 0 < load.seconds(time.monotonic()) < 60


def test_a_load_that_finds_nobody_is_an_error_and_no_hang(tmp_path):
    settings = Settings(Path(), Path(), (b"{}",), tmp_path)
    with pytest.raises(ServerFailed, match="refused"), SteadyLoad(settings, "http://127.0.0.1:1"):
        pass


@pytest.mark.parametrize("forgery", [*FORGERIES, *WEIGHT_FORGERIES], ids=lambda forgery: forgery.name)
def test_each_forgery_is_refused_for_its_reason(forgery, models, tmp_path):
    from shutil import copytree

    from service.engine import Engine

    folder = copytree(models / "demo" / "1", tmp_path / "2")
    forgery.spoil(folder)
    if forgery.reason == "ConfigInvalid":  # a good bundle, for other policies
        assert read_bundle(folder).manifest.task_names[0] == "another_task_0"
        return
    with pytest.raises(Exception, match=r".") as caught:
        Engine(read_bundle(folder))
    assert type(caught.value).__name__ == forgery.reason


@pytest.mark.parametrize("forgery", SIGNATURE_FORGERIES, ids=lambda forgery: forgery.name)
def test_each_forged_signature_is_refused_for_its_reason_and_a_good_one_is_not(forgery, models, tmp_path):
    from shutil import copytree

    from bundle.signature import read_trusted_keys
    from loadtest.scenarios.signing import Signer

    signer, trusted = Signer(), tmp_path / "trusted.pem"
    trusted.write_bytes(signer.public_pem)
    good = copytree(models / "demo" / "1", tmp_path / "demo" / "1")
    signer.sign(good, "demo", "1")
    assert read_bundle(good, read_trusted_keys(trusted)).signed_by
    folder = copytree(good, tmp_path / "demo" / "2")
    forgery.spoil(folder)
    with pytest.raises(Exception, match=r"manifest\.sig") as caught:
        read_bundle(folder, read_trusted_keys(trusted))
    assert type(caught.value).__name__ == forgery.reason


@pytest.mark.parametrize("first", SWAPPERS)
def test_every_way_of_swapping_ends_with_the_whole_text(first, tmp_path):
    file = tmp_path / "fusion.yaml"
    file.write_text("old")
    for name in (first, "ConfigMap", "truncate", "ConfigMap"):
        SWAPPERS[name](file, f"new by {name}")
        assert file.read_text() == f"new by {name}"


def test_a_config_needs_a_task_that_all_bundles_have(models, tmp_path):
    assert config_swaps.common_task(models) == "click"
    with pytest.raises(KitInvalid):
        config_swaps.common_task(tmp_path)


def test_a_preloaded_library_moves_the_wall_clock_and_no_other(tmp_path):
    if command_path("cc") is None:
        pytest.skip("cc is not installed")
    offset = tmp_path / "offset"
    clock_jump.set_offset(offset, -86_400)
    assert offset.read_bytes() == struct.pack("=q", -86_400_000_000_000)
    code = "import time, datetime; print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    library = clock_jump.build(tmp_path)
    environment = {**os.environ, "LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(offset)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    wall, monotonic, named = map(float, done.stdout.split())
    assert wall - time.time() == pytest.approx(-86_400, abs=60) == named - time.time()
    assert monotonic == pytest.approx(time.monotonic(), abs=60)
    assert ctypes.CDLL(str(library)).time(None) > 0


def test_until_tells_when_and_gives_up():
    assert until(lambda: True, 1) is not None
    assert until(lambda: False, 0.05) is None
