"""memory: what one worker holds, and four of one ranker, once each has answered every request.

The proportional set size (a page that several processes map counts once, in shares) of all of a ranker's processes:
what one more worker costs a machine. Made for an item table of some size, all of whose rows the requests name:
`dlen benchmark kit --table-items 660000` writes one of a GiB, and such requests.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from loadtest.scenarios.resources import held_by
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_most
from loadtest.scenarios.stack import Ranker, clients_by_worker

WORKERS = 4
MOST_TIMES = 1.3
"""What four workers of a large table may hold, in times of what one holds."""
LARGE_MB = 1000.0
MOST_MORE_MB = 100.0
"""What each further worker may add."""
_NO_SHEDDING = {"DLEN_QUEUE_MS": "10000", "DLEN_DEADLINE_MS": "60000"}


def run(settings: Settings) -> ScenarioResult:
    """Start one worker, then four, and have each answer every request."""
    one_mb, _ = _held_mb(settings, 1)
    several_mb, parts = _held_mb(settings, WORKERS)
    bundles_mb = sum(file.stat().st_size for file in settings.models.rglob("*") if file.is_file()) / 2**20
    figures = {"bundles_mb": round(bundles_mb, 1), "one_mb": round(one_mb, 1), f"{WORKERS}_mb": round(several_mb, 1)}
    return ScenarioResult(checks(one_mb, several_mb, bundles_mb), figures | {"of each process": parts})


def checks(one_mb: float, several_mb: float, bundles_mb: float) -> tuple[Check, ...]:
    """Judge what further workers add; in times of one worker only where there is something to share."""
    more_mb = (several_mb - one_mb) / (WORKERS - 1)
    found = [at_most("each further worker adds", more_mb, MOST_MORE_MB, "MiB")]
    if bundles_mb >= LARGE_MB:
        found.append(at_most(f"{WORKERS} workers hold, in times of one", several_mb / one_mb, MOST_TIMES))
    return tuple(found)


def _held_mb(settings: Settings, workers: int) -> tuple[float, dict[str, float]]:
    """Return what a ranker's processes hold together, and by process."""
    with Ranker(settings, f"memory-{workers}", workers=workers, environment=_NO_SHEDDING) as ranker:
        clients = clients_by_worker(ranker.url, workers)
        headers = {"content-type": "application/json"}
        for body in settings.bodies:  # in turns: a connection that rests is closed, and the next one is any worker's
            for client in clients.values():
                client.post("/v1/rank", content=body, headers=headers, timeout=60).raise_for_status()
        for client in clients.values():
            client.close()
        settings.say(f"{workers} workers: each has answered {len(settings.bodies)} requests")
        pids = ranker.all_pids()
        held = {_name(pid, pids, clients.keys()): round(held_by(pid).pss_mb, 1) for pid in pids}
    return sum(held.values()), held


def _name(pid: int, pids: list[int], serving: Collection[int]) -> str:
    """Return what a process is."""
    if pid in serving:
        return f"worker {pid}"
    if pid == pids[0]:
        return "supervisor"
    return "fork server" if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() else f"process {pid}"


SCENARIO = Scenario("memory", "what four workers hold, in times of one", run)
