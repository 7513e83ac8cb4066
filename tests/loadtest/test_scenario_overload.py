"""The verdicts of `overload`: each promise broken in turn; and a short real run, of which only the shape counts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import main
from loadtest.drive import TIMED_OUT, Outcome
from loadtest.scenarios import overload
from loadtest.scenarios.levels import Level, level_of
from loadtest.scenarios.recovery import Recovery, recovery_of
from loadtest.scenarios.scenario import Settings

NAN = (float("nan"), float("nan"))


def level(share: float, good_per_s: float, **changes: object) -> Level:
    refused = share > 1
    made = Level(
        share, 400, share * 500, good_per_s, (50.0, 120.0), (1.0, 4.0) if refused else NAN, 0, 0, 0, 0.5, 500.0
    )
    return replace(made, **changes)


GOOD = overload.Facts(
    levels=(
        level(0.5, 250),
        level(1, 490),
        level(2, 480),
        level(10, 440),
        level(2, 470, deadline_ms=100, good_ms=(40.0, 90.0)),
    ),
    recovery=Recovery(0.5, 20, 21),
    refused=9000,
    counted=9000,
    degraded=0,
    pinned=True,
)


def changed(number: int, **changes: object) -> overload.Facts:
    levels = tuple(replace(one, **changes) if at == number else one for at, one in enumerate(GOOD.levels))
    return replace(GOOD, levels=levels)


def failed(facts: overload.Facts) -> list[str]:
    return [check.name for check in overload.checks(facts) if not check.passed]


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (GOOD, []),
        (changed(2, good_per_s=424.0), ["goodput at 2×"]),
        (changed(3, good_per_s=374.0), ["goodput at 10×"]),
        (changed(3, capacity_per_s=600.0), ["goodput at 10×"]),  # 440 a second of a faster machine are less
        (changed(4, good_ms=(60.0, 101.0)), ["accepted answered at 2×, 100 ms, p99"]),
        (changed(2, refused_ms=(1.0, 11.0)), ["503 answered at 2×, p99"]),
        (changed(3, refused_ms=NAN), ["503 answered at 10×, p99"]),
        (changed(0, good_ms=(300.0, 401.0)), ["accepted answered at 0.5×, p99"]),
        (changed(3, failed=1), ["neither 2xx nor 503 nor 504 at 10×"]),
        (replace(GOOD, recovery=Recovery(5.25, 20, 21)), ["after the burst as before it"]),
        (replace(GOOD, recovery=Recovery(float("inf"), 20, 90)), ["after the burst as before it"]),
        (replace(GOOD, counted=8999), ["refused by the metrics, as many as the load saw"]),
    ],
)
def test_each_broken_promise_is_named(facts, names):
    assert failed(facts) == names
    json.dumps(overload.figures(facts), allow_nan=False)


def outcome(at_s: list[float], latency_ms: list[float], status: list[int]) -> Outcome:
    send_ns, latency_ns = (np.asarray(values) * scale for values, scale in ((at_s, 1e9), (latency_ms, 1e6)))
    lag_ns = np.zeros(len(at_s), np.int64)
    return Outcome(send_ns.astype(np.int64), latency_ns.astype(np.int64), lag_ns, np.asarray(status, np.int16), 1)


def test_a_level_counts_what_is_answered_within_it():
    found = level_of(
        outcome([0.5, 1.0, 1.5, 1.9, 2.0, 2.5, 2.9, 3.0], [600, 10, 20, 500, 2, 3, 300, 1],
                [200, 200, 200, 200, 503, 504, TIMED_OUT, 200]),
        share=2, deadline_ms=400, warmup_s=1, duration_s=2, capacity_per_s=4,
    )  # fmt: skip
    assert (found.offered_per_s, found.good_per_s) == (3.0, 2.0)  # the first is answered in it, though sent before
    assert found.of_capacity == 0.5
    assert (found.refused, found.expired, found.failed) == (1, 1, 1)
    assert found.good_ms[0] == 20 and found.refused_ms == (2.0, 2.0)


def burst(after_bad_s: float, *, slow_ms: float = 10, lost_every: int = 0) -> Outcome:
    """Light load, a burst from 5 to 10 s, and bad answers until so long after it."""
    at_s = np.arange(0, 25, 0.01)
    latency, status = np.full(len(at_s), 10.0), np.full(len(at_s), 200)
    bad = (at_s >= 5) & (at_s < 10 + after_bad_s)
    latency[bad] = slow_ms
    if lost_every:
        status[np.flatnonzero(bad)[::lost_every]] = 503
    return outcome(at_s.tolist(), latency.tolist(), status.tolist())


@pytest.mark.parametrize(
    ("after_bad_s", "how"), [(0, {"slow_ms": 90}), (3, {"slow_ms": 90}), (7, {"slow_ms": 16}), (3, {"lost_every": 10})]
)
def test_recovered_is_when_all_is_as_before_and_stays_so(after_bad_s, how):
    found = recovery_of(burst(after_bad_s, **how), 5, 10)
    assert after_bad_s - 0.26 <= found.seconds <= after_bad_s + 0.26
    assert found.before_ms == pytest.approx(10)


def test_what_never_recovers_and_what_was_never_bad():
    assert recovery_of(burst(20, slow_ms=90), 5, 10).seconds == float("inf")
    assert recovery_of(burst(0), 5, 10).seconds == 0
    assert recovery_of(burst(3, slow_ms=12), 5, 10).seconds == 0  # within a quarter, or 5 ms
    assert recovery_of(outcome([0.0], [1.0], [200]), 5, 10).seconds == float("inf")


def test_bodies_with_few_candidates_are_widened_and_others_kept(tmp_path):
    few = json.dumps({"candidates": [{"id": "a"}, {"id": "b"}]}).encode()
    many = json.dumps({"candidates": {"id": [str(i) for i in range(150)]}}).encode()
    given = Settings(tmp_path, tmp_path, (few, many), tmp_path)
    wide, kept = overload.enough_candidates(given)
    ids = [one["id"] for one in json.loads(wide)["candidates"]]
    assert len(ids) == len(set(ids)) == overload.CANDIDATES and kept == many


@pytest.mark.timeout(200)
def test_a_short_run_measures_every_level(prepared, models, tmp_path, capsys):
    """How fast this machine is, and how busy, is not judged: only that all is measured and counted."""
    allowed = os.sched_getaffinity(0)
    requests, found = tmp_path / "requests.jsonl", tmp_path / "found.json"
    words = ["request", "--data", str(prepared), "--split", "test", "--count", "4", "--candidates", "20"]
    assert main([*words, "--out", str(requests)]) == 0
    fusion = Path(__file__).parents[2] / "configs/fusion.yaml"
    words = ["loadtest", "scenario", "overload", "--quick", "--models", str(models), "--fusion", str(fusion)]
    assert main([*words, "--request", str(requests), "--json", str(found), "--plot", str(tmp_path / "p.png")]) in (0, 1)
    result = json.loads(found.read_text())["results"]["overload"]
    passed = {check["name"]: check["passed"] for check in result["checks"]}
    assert len(passed) == 18 and passed["refused by the metrics, as many as the load saw"], capsys.readouterr().out
    assert all(passed[f"neither 2xx nor 503 nor 504 at {share}×"] for share in ("0.5", "1", "2", "10"))
    assert result["figures"]["10x"]["503"] > 0 and result["figures"]["10x"]["capacity_per_s"] > 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert os.sched_getaffinity(0) == allowed
