"""Swaps of the config under load: no mixed versions, no failed request, every worker current within a second.

DLEN_TEST_SWAPS sets how many (60 by default; 1,000 is the target's number), DLEN_TEST_SWAPS_JSON where to write what
was measured.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

SWAPS = int(os.environ.get("DLEN_TEST_SWAPS", "60"))
GIVE_UP_SECONDS = 10.0


def rename(file: Path, text: str) -> None:
    aside = file.with_name(".aside")
    aside.write_text(text)
    aside.replace(file)


def rewrite(file: Path, text: str) -> None:
    """Truncate, then write in two halves."""
    with file.open("w") as opened:
        opened.write(text[: len(text) // 2])
        opened.flush()
        time.sleep(0.005)
        opened.write(text[len(text) // 2 :])


def swap_link(file: Path, text: str) -> None:
    """As Kubernetes does: fusion.yaml → ..data/fusion.yaml, ..data → a folder that is swapped as a whole."""
    folder = file.parent
    old = (folder / "..data").resolve() if (folder / "..data").exists() else None
    fresh = folder / f"..{time.monotonic_ns()}"
    fresh.mkdir()
    (fresh / file.name).write_text(text)
    link = folder / "..new"
    link.symlink_to(fresh.name)
    link.replace(folder / "..data")
    if not file.is_symlink():
        file.unlink()
        file.symlink_to(f"..data/{file.name}")
    if old is not None:
        (old / file.name).unlink()
        old.rmdir()


SWAPPERS: dict[str, Callable[[Path, str], None]] = {"rename": rename, "symlink": swap_link, "rewrite": rewrite}


class Load:
    """Threads that send rank requests, and what they were answered."""

    def __init__(self, url: str, body: dict, threads: int = 2) -> None:
        self.failures: list[str] = []
        self.rankings: dict[str, set[str]] = {}
        self.requests = 0
        self._url, self._body, self._stop = url, body, threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._stop.wait(0.002):
                response = client.post(f"{self._url}/v1/rank", json=self._body)
                self.requests += 1
                if response.status_code != 200 or response.json()["degraded"]:
                    self.failures.append(f"{response.status_code} {response.text[:200]}")
                    continue
                answer = response.json()
                ranking = json.dumps([(item["id"], item["score"]) for item in answer["items"]])
                self.rankings.setdefault(answer["config_version"], set()).add(ranking)


def connections(url: str, workers: int) -> dict[int, httpx.Client]:
    """A kept-alive connection to each worker, by its pid."""
    found: dict[int, httpx.Client] = {}
    give_up = time.monotonic() + 30
    while len(found) < workers:
        assert time.monotonic() < give_up
        client = httpx.Client(base_url=url, timeout=10)
        if found.setdefault(client.get("/v1/config").json()["pid"], client) is not client:
            client.close()
    return found


def seconds_until(clients: dict[int, httpx.Client], weight: float, start: float) -> float:
    """Seconds from `start` until every worker's config has the weight."""
    waiting = dict(clients)
    while waiting:
        assert time.monotonic() - start < GIVE_UP_SECONDS, f"workers {sorted(waiting)} do not follow"
        for pid, client in list(waiting.items()):
            if client.get("/v1/config").json()["config"]["policies"]["feed"]["weights"]["like"] == weight:
                del waiting[pid]
        time.sleep(0.005)
    return time.monotonic() - start


@pytest.mark.timeout(900)
def test_swaps_under_load_mix_no_versions_fail_no_request_and_reach_every_worker(
    tmp_path, models_folder, fusion_file, serve, make_body
):
    text = fusion_file.read_text()
    folder = tmp_path / "config"
    folder.mkdir()
    file = folder / "fusion.yaml"
    file.write_text(text)
    service = serve(
        "--workers", "2", fusion=folder, DLEN_FUSION_STATE=str(tmp_path / "state"), DLEN_QUEUE_MS="10000",
        DLEN_DEADLINE_MS="30000", DLEN_DRAIN_SECONDS="0",
    )  # fmt: skip
    clients = connections(service.url, 2)
    seconds: dict[str, list[float]] = {name: [] for name in SWAPPERS}
    with Load(service.url, make_body(20)) as load:
        for number in range(SWAPS):
            name = list(SWAPPERS)[number * len(SWAPPERS) // SWAPS]
            weight = 4.0 + number / 8
            start = time.monotonic()
            SWAPPERS[name](file, text.replace("like: 3.0", f"like: {weight}"))
            seconds[name].append(seconds_until(clients, weight, start))
    for client in clients.values():
        client.close()
    measured = {
        "swaps": SWAPS,
        "requests": load.requests,
        "failed": len(load.failures),
        "versions_seen": len(load.rankings),
        "versions_with_two_rankings": sum(len(rankings) > 1 for rankings in load.rankings.values()),
        "rankings": len({ranking for rankings in load.rankings.values() for ranking in rankings}),
        "seconds_until_both_workers_follow": {
            name: {"swaps": len(some), "median": round(sorted(some)[len(some) // 2], 3), "max": round(max(some), 3)}
            for name, some in seconds.items()
        },
    }
    if "DLEN_TEST_SWAPS_JSON" in os.environ:
        Path(os.environ["DLEN_TEST_SWAPS_JSON"]).write_text(json.dumps(measured, indent=1) + "\n")
    assert load.failures == []
    assert (measured["versions_with_two_rankings"], measured["rankings"]) == (0, measured["versions_seen"])
    assert measured["versions_seen"] > SWAPS / 2
    assert service.metric("dlen_load_failures_total", kind="config") <= SWAPS / 10
    assert service.metric("dlen_http_requests_total", status="500") == 0
