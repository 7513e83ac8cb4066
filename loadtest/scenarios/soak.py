"""soak: a day of changes in minutes, under load: configs, model versions, experiments, connections that come and go.

What processes hold (memory, descriptors, threads), how many series they show and how long answers take must stay flat.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np

from loadtest.drive import Outcome
from loadtest.files import write_file
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.changes import Churn, Models, changed_configs, users_of
from loadtest.scenarios.flat import Series, flat_check, trend
from loadtest.scenarios.resources import Held, Sampler, Samples
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, equal
from loadtest.scenarios.soak_plot import plot_soak
from loadtest.scenarios.stack import PATIENT, Ranker

MINUTES, QUICK_MINUTES = 30.0, 0.2
WORKERS = 2
CONFIGS = 24
"""Different configs, taken in turns: a day with one an hour."""
VERSIONS = 24
"""Model versions in the whole run, whatever it takes: a day with one an hour."""
CONFIG_S, SAMPLE_S = 2.0, 5.0
USERS = 200
_NAMES = {"rss_mb": "resident memory", "own_mb": "memory of its own"}
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
    changing = Models(settings.models, models)
    load_settings = replace(settings, bodies=users_of(settings.bodies, USERS))
    with Ranker(settings, workers=WORKERS, models=models, fusion=fusion, environment=PATIENT) as ranker:
        pids = (ranker.process.pid, *sorted(ranker.worker_pids()))
        with SteadyLoad(load_settings, ranker.url, duration_s=length_s + 120, timeout_s=30.0) as load:
            sampler = Sampler(
                lambda: [ranker.process.pid, *ranker.worker_pids()],
                ranker.port,
                lambda: float(_series_of(ranker.metrics_url)),
                min(SAMPLE_S, length_s / 20),
            )
            with sampler, Churn(ranker.url, load_settings.bodies) as churn:
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
        at_most("requests not answered 2xx", int((~good).sum()), 0),
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
        "medians": {series.name: round(trend(series).median, 1) for series in series_of(facts)},
        "proportional_memory_mb": {
            f"worker {number}" if number else "supervisor": round(float(np.median(_column(held, "pss_mb"))), 1)
            for number, held in enumerate([[one.get(pid) for one in facts.samples.held] for pid in facts.pids])
        },
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


def _change(settings: Settings, fusion: Path, configs: list[bytes], models: Models, length_s: float) -> int:
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
