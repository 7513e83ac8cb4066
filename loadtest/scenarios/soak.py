"""soak: a day of changes in minutes, under load: configs, model versions, experiments, connections that come and go.

What processes hold (memory, descriptors, threads), how many series they show and how long answers take must stay flat.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import yaml

from loadtest.drive import Outcome
from loadtest.files import write_file
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.flat import Series, flat_check
from loadtest.scenarios.resources import Held, Sampler, Samples
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal
from loadtest.scenarios.soak_plot import plot_soak
from loadtest.scenarios.stack import Ranker
from loadtest.traffic import build_requests, parse_target

MINUTES, QUICK_MINUTES = 30.0, 0.2
WORKERS = 2
CONFIGS = 24
"""Different configs, taken in turns: a day with one an hour."""
VERSIONS = 24
"""Model versions in the whole run, whatever it takes: a day with one an hour."""
CONFIG_S, SAMPLE_S = 2.0, 5.0
USERS = 200
CHURN_PER_S = 5.0
MOST_FAILED_PERCENT = 0.1
"""A machine that others use may stand still for longer than a deadline; a change that loses requests shows as more."""
_NAMES = {"rss_mb": "resident memory", "pss_mb": "proportional memory"}
_SETTLE_S = 3.0


@dataclass(frozen=True)
class Facts:
    """What the soak saw.

    Attributes:
        pids: the supervisor and its workers, at the start.
        load: what became of every request of the steady load.
        churned: connections that were opened, used once (or left half-way) and closed; refused: of those not taken.
        configs, models: how often each was swapped.
        exposures: users who were told to be in an experiment, and load_failures: versions that were refused.
        serving: model version and config that answered in the end, and wanted: those that should.
    """

    pids: tuple[int, ...]
    samples: Samples
    load: Outcome
    churned: int
    refused: int
    configs: int
    models: int
    exposures: float
    load_failures: float
    serving: str
    wanted: str


def run(settings: Settings) -> ScenarioResult:
    """Serve under load while everything that may change does, and look at what grows."""
    length_s = 60 * (settings.minutes or (QUICK_MINUTES if settings.quick else MINUTES))
    fusion = settings.folder / "fusion.yaml"
    configs = changed_configs(settings.fusion.read_text(), CONFIGS)
    write_file(fusion, configs[0])
    models = settings.folder / "models"
    changing = _Models(settings.models, models)
    load_settings = replace(settings, bodies=users_of(settings.bodies, USERS))
    with Ranker(settings, workers=WORKERS, models=models, fusion=fusion) as ranker:
        pids = (ranker.process.pid, *sorted(ranker.worker_pids()))
        with SteadyLoad(load_settings, ranker.url, duration_s=length_s + 120, timeout_s=5.0) as load:
            sampler = Sampler(
                lambda: [ranker.process.pid, *ranker.worker_pids()],
                lambda: float(_series_of(ranker.metrics_url)),
                min(SAMPLE_S, length_s / 20),
            )
            with sampler, _Churn(ranker.url, load_settings.bodies) as churn:
                swaps = _change(settings, fusion, configs, changing, length_s)
        time.sleep(_SETTLE_S)
        facts = Facts(
            pids=pids,
            samples=sampler.samples,
            load=load.outcome,
            churned=churn.done,
            refused=churn.refused,
            configs=swaps,
            models=changing.swaps,
            exposures=ranker.metric("dlen_rank_exposures_total"),
            load_failures=ranker.metric("dlen_load_failures_total"),
            serving=_serving(ranker.url, load_settings.bodies[0]),
            wanted=f"model {changing.version}, config variation {swaps % CONFIGS}",
        )
    events = tuple(at - facts.load.start_ns / 1e9 for at in changing.at)
    every = series_of(facts)
    return ScenarioResult(checks(facts), figures(facts), draw=lambda: plot_soak(every, events))


def checks(facts: Facts) -> tuple[Check, ...]:
    """Judge a soak."""
    good = (facts.load.status >= 200) & (facts.load.status < 300)
    last = set(facts.samples.held[-1]) if facts.samples.held else set()
    return (
        *(flat_check(series) for series in series_of(facts)),
        at_most("requests not answered 2xx", 100 * float((~good).mean()), MOST_FAILED_PERCENT, "%"),
        at_most("connections that were not taken", facts.refused, 0),
        equal("processes in the end are those of the start", sorted(last), sorted(facts.pids)),
        at_most("versions refused", facts.load_failures, 0),
        equal("serves in the end", facts.serving, facts.wanted),
        at_least("exposures of experiments", facts.exposures, 1),
    )


def figures(facts: Facts) -> dict[str, object]:
    """Return what was done, beside the checks."""
    seconds = float(facts.load.send_ns[-1]) / 1e9
    return {
        "minutes": round(seconds / 60, 1),
        "requests": len(facts.load.status),
        "statuses": dict(
            zip(*(part.tolist() for part in np.unique(facts.load.status, return_counts=True)), strict=True)
        ),
        "requests_per_s": round(len(facts.load.status) / seconds, 1),
        "latency_ms": {f"p{p}": round(float(np.percentile(facts.load.latency_ns, p)) / 1e6, 2) for p in (50, 99)},
        "config_swaps": facts.configs,
        "model_versions": facts.models,
        "connections_churned": facts.churned,
        "exposures": facts.exposures,
        "samples": len(facts.samples.at),
    }


def series_of(facts: Facts) -> tuple[Series, ...]:
    """Return every figure that must stay flat, over time."""
    samples, start_s = facts.samples, facts.load.start_ns / 1e9
    at_s = tuple(at - start_s for at in samples.at)
    found = []
    for number, pid in enumerate(facts.pids):
        who = f"worker {number}" if number else "supervisor"
        held = [sample.get(pid) for sample in samples.held]
        for name, text in _NAMES.items():
            found.append(Series(f"{who}: {text}", "MiB", at_s, _column(held, name), 4.0, 0.03))
        found.append(Series(f"{who}: descriptors", "", at_s, _column(held, "descriptors"), 2.0))
        found.append(Series(f"{who}: threads", "", at_s, _column(held, "threads"), 0.5))
    found.append(Series("series shown", "", at_s, samples.counted, 5.0, 0.02))
    window_s = max(1.0, min(30.0, (at_s[-1] if at_s else 0.0) / 20))
    starts = np.arange(0.0, float(facts.load.send_ns[-1]) / 1e9 - window_s + 1e-9, window_s)
    edges = np.searchsorted(facts.load.send_ns, np.append(starts, starts[-1:] + window_s) * 1e9)
    p99 = [
        float(np.percentile(facts.load.latency_ns[low:high], 99)) / 1e6 if high > low else float("nan")
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    found.append(Series("latency p99", "ms", tuple((starts + window_s).tolist()), tuple(p99), 5.0, 0.25))
    return tuple(found)


def changed_configs(text: str, count: int) -> list[bytes]:
    """Return a fusion config in so many variations, with an experiment that half of the users are in."""
    given = []
    for number in range(count):
        document = yaml.safe_load(text)
        name = document["default"]
        policy = document["policies"][name]
        policy["description"] = f"variation {number}"
        if "p_up" in policy:
            policy["p_up"] = round(float(policy["p_up"]) + number / 1000, 4)
        variants = [
            {"name": "as_it_is", "weight": 0.5},
            {"name": "patched", "weight": 0.5, "patch": {"description": "in the experiment"}},
        ]
        experiment = {"name": "soak", "traffic": 0.5, "variants": variants}
        document["layers"] = [*document.get("layers", ()), {"name": "soak", "experiments": [experiment]}]
        given.append(yaml.safe_dump(document).encode())
    return given


def users_of(bodies: Sequence[bytes], count: int) -> tuple[bytes, ...]:
    """Return requests of so many different users, made of the bodies in turns."""
    made = []
    for number in range(count):
        document = json.loads(bodies[number % len(bodies)])
        document["user"] = {**document.get("user", {}), "id": f"soak-{number}"}
        document["request_id"] = f"soak-{number}"
        made.append(json.dumps(document).encode())
    return tuple(made)


class _Models:
    """A models folder whose highest version changes: copies of one bundle, of which the last two stay."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._folder = folder
        self.version, self.swaps = 1, 0
        self.at: list[float] = []
        for model in sorted(path for path in source.iterdir() if path.is_dir()):
            versions = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
            if versions:
                shutil.copytree(model / str(max(versions)), folder / model.name / "1")

    def swap(self) -> None:
        for model in self._folder.iterdir():
            aside = model / ".next"
            shutil.copytree(model / str(self.version), aside)
            aside.rename(model / str(self.version + 1))
            shutil.rmtree(model / str(self.version - 1), ignore_errors=True)
        self.version += 1
        self.swaps += 1
        self.at.append(time.monotonic())


def _change(settings: Settings, fusion: Path, configs: list[bytes], models: _Models, length_s: float) -> int:
    """Swap configs and models until the time is over; return how many configs."""
    start, swaps = time.monotonic(), 0
    told = start
    every_s = length_s / (VERSIONS if length_s > 60 else 3)
    while (past_s := time.monotonic() - start) < length_s:
        time.sleep(min(CONFIG_S, length_s / 10))
        swaps += 1
        write_file(fusion, configs[swaps % len(configs)])
        if past_s > every_s * (models.swaps + 1) and past_s < length_s - every_s / 2:
            models.swap()
        if time.monotonic() - told > 60:
            told = time.monotonic()
            settings.say(f"{past_s / 60:.0f} of {length_s / 60:.0f} minutes, {swaps} configs, {models.swaps} models")
    return swaps


class _Churn:
    """Connections that are opened, used once or left half-way, and closed."""

    def __init__(self, url: str, bodies: Sequence[bytes]) -> None:
        target = parse_target(url)
        self._address = (target.host, target.port)
        self._requests = build_requests(target, bodies)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = self.refused = 0

    def __enter__(self) -> _Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1 / CHURN_PER_S):
            request = self._requests[self.done % len(self._requests)]
            try:
                with socket.create_connection(self._address, timeout=5) as opened:
                    opened.sendall(request if self.done % 4 else request[: len(request) // 2])
                    if self.done % 4:
                        opened.recv(65536)
            except OSError:
                self.refused += 1
            self.done += 1


def _serving(url: str, body: bytes) -> str:
    """Return which model version and config variation answer."""
    with contextlib.suppress(httpx.HTTPError, KeyError, IndexError):
        version = httpx.post(f"{url}/v1/rank", content=body, timeout=10).json()["model_version"]
        config = httpx.get(f"{url}/v1/config", timeout=10).json()["config"]
        described = config["policies"][config["default"]]["description"].split()
        return f"model {version}, config variation {described[-1]}"
    return "nothing"


def _series_of(metrics_url: str) -> int:
    """Return how many series a ranker shows."""
    try:
        text = httpx.get(f"{metrics_url}/metrics", timeout=10).text
    except httpx.HTTPError:
        return 0
    return sum(1 for line in text.splitlines() if line and not line.startswith("#"))


def _column(held: Sequence[Held | None], name: str) -> tuple[float, ...]:
    return tuple(float("nan") if one is None else float(getattr(one, name)) for one in held)


SCENARIO = Scenario(
    "soak",
    "a day of config and model changes in half an hour (--minutes), under load: what processes hold stays flat",
    run,
)
