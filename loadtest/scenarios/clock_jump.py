"""clock-jump: the rankers' wall clock is set forwards and backwards under load; nothing but time stamps may change.

A small library, preloaded into the ranker's processes, moves their wall clock and leaves monotonic clocks alone, as
setting the time does; the machine's own clock is not touched. What the kernel does with absolute wall-clock time-outs
is not imitated.
"""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from loadtest.drive import Outcome
from loadtest.errors import ServerFailed
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.config_swaps import common_task, config, seconds_until_current
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, timeline_of
from loadtest.scenarios.stack import Ranker, clients_by_worker, command_path
from loadtest.scenarios.swapping import rename

WORKERS = 2
DRAIN_S = 2.0
SLACK_S = 10.0
CURRENT_WITHIN_S = 1.0
_HOUR_S, _DAY_S, _YEAR_S = 3600, 86_400, 31_536_000
_FULL = (_HOUR_S, 0, -_DAY_S, 10 * _YEAR_S, -20, 0)
_QUICK = (_HOUR_S, -_DAY_S)
_SETTLE_S = 1.3
"""uvicorn's Date header is up to a second old."""
_NO_SHEDDING = {"DLEN_QUEUE_MS": "60000", "DLEN_MAX_IN_FLIGHT": "1000"}


@dataclass(frozen=True)
class Jump:
    """One setting of the clock.

    Attributes:
        wanted_s: how far from the truth it was set.
        seen_s: how far from the truth the ranker's Date headers were, the one farthest from `wanted_s`.
        config_s: seconds until every worker had a config swapped in just afterwards.
    """

    wanted_s: float
    seen_s: float
    config_s: float


@dataclass(frozen=True)
class Facts:
    """All jumps; the mean time of a request by the ranker's own metrics; how long its end took across another jump."""

    jumps: Sequence[Jump]
    mean_request_s: float
    end_s: float


def run(settings: Settings) -> ScenarioResult:
    """Set the clock again and again, then once more while the ranker drains."""
    offset = settings.folder / "offset"
    set_offset(offset, 0)
    task, file = common_task(settings.models), settings.folder / "fusion.yaml"
    file.write_text(config(task, 1.0))
    environment = {
        **_NO_SHEDDING,
        "DLEN_DRAIN_SECONDS": str(DRAIN_S),
        "LD_PRELOAD": str(build(settings.folder)),
        "WALL_CLOCK_OFFSET": str(offset),
    }
    jumps: list[Jump] = []
    moments: list[tuple[float, str]] = []
    with Ranker(settings, workers=WORKERS, fusion=file, environment=environment) as ranker:
        clients = clients_by_worker(ranker.url, WORKERS)
        with SteadyLoad(settings, ranker.url) as load:
            time.sleep(1.0)
            for number, wanted_s in enumerate(_QUICK if settings.quick else _FULL):
                set_offset(offset, wanted_s)
                moments.append((time.monotonic(), f"clock {wanted_s:+,} s"))
                start, weight = time.monotonic(), 2.0 + number
                rename(file, config(task, weight))
                config_s = seconds_until_current(clients, task, weight, start)
                time.sleep(_SETTLE_S)
                seen = [date_offset_s(client) for client in clients.values()]
                _, seen_s = max((abs(one - wanted_s), one) for one in seen)
                jumps.append(Jump(wanted_s, seen_s, config_s))
        request_s = ranker.metric("dlen_http_request_seconds_sum", route="/v1/rank")
        requests = ranker.metric("dlen_http_request_seconds_count", route="/v1/rank")
        for client in clients.values():
            client.close()
        end_s = _end_across_a_jump(ranker, offset)
    facts = Facts(jumps, request_s / max(requests, 1), end_s)
    figures = {
        "requests": len(load.outcome.status),
        "jumps_s": [jump.wanted_s for jump in jumps],
        "config_s": [round(jump.config_s, 3) for jump in jumps],
        "mean_request_ms": round(1000 * facts.mean_request_s, 2),
        "end_s": round(end_s, 2),
    }
    events = tuple((load.seconds(at), name) for at, name in moments)
    return ScenarioResult(checks(load.outcome, facts), figures, timeline_of(load.outcome, events))


def checks(outcome: Outcome, facts: Facts) -> tuple[Check, ...]:
    """Judge what callers and metrics saw of the jumps, once it is certain that there were any."""
    failed = int(((outcome.status < 200) | (outcome.status >= 300)).sum())
    longest_s = float(outcome.latency_ns.max(initial=0)) / 1e9
    return (
        at_most("jumps that the ranker's Date header missed by", _missed_s(facts.jumps), 5, "s"),
        at_most("failed requests", failed, 0),
        at_most("longest answer", longest_s, SLACK_S, "s"),
        at_most("slowest config swap after a jump", max(jump.config_s for jump in facts.jumps), CURRENT_WITHIN_S, "s"),
        at_least("mean request by its own metrics, no less than", facts.mean_request_s, 0, "s"),
        at_most("mean request by its own metrics, no more than", facts.mean_request_s, 1, "s"),
        at_least("drain across a jump forwards, no less than", facts.end_s, DRAIN_S, "s"),
        at_most("drain across a jump forwards, no more than", facts.end_s, DRAIN_S + SLACK_S, "s"),
    )


def build(folder: Path) -> Path:
    """Compile the library that moves wall clocks; return its path.

    Raises:
        ServerFailed: the compiler refuses.
    """
    library = folder / "wall_clock.so"
    source = Path(__file__).with_name("wall_clock.c")
    words = [str(command_path("cc")), "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFailed("cc", found=done.stderr[-300:], expected="a library that moves wall clocks")
    return library


def set_offset(file: Path, seconds: float) -> None:
    """Set how far the wall clock is off; written in place, since it is mapped."""
    with file.open("r+b" if file.exists() else "w+b") as opened:
        opened.write(struct.pack("=q", int(seconds * 1e9)))


def date_offset_s(client: httpx.Client) -> float:
    """Return how far a ranker's Date header is from this machine's clock."""
    return parsedate_to_datetime(client.get("/healthz").headers["date"]).timestamp() - time.time()


def _missed_s(jumps: Sequence[Jump]) -> float:
    return max(abs(jump.seen_s - jump.wanted_s) for jump in jumps)


def _end_across_a_jump(ranker: Ranker, offset: Path) -> float:
    """Tell the ranker to stop, set its clock on by an hour while it drains, and return how long it took."""
    start = time.monotonic()
    ranker.terminate()
    time.sleep(DRAIN_S / 2)
    set_offset(offset, _HOUR_S)
    ranker.process.wait(60)
    return time.monotonic() - start


SCENARIO = Scenario(
    "clock-jump", "the wall clock set by hours, days and years under load: only time stamps change", run, ("cc",)
)
