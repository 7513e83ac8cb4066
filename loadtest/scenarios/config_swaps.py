"""config-swaps: the fusion config is swapped a thousand times under load, broken ones in between."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from loadtest.drive import Outcome
from loadtest.errors import KitInvalid
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.readers import Readers, Seen
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_least, at_most, timeline_of
from loadtest.scenarios.stack import PATIENT, Ranker, clients_by_worker, config_of, until
from loadtest.scenarios.swapping import SWAPPERS

WORKERS = 2
CURRENT_WITHIN_S = 1.0
_FULL, _QUICK = 1000, 12
_BROKEN_EACH = 10
_GIVE_UP_S = 10.0


@dataclass
class Facts:
    """What was done and seen.

    Attributes:
        seconds: until every worker had a swapped config, by way of swapping.
        good: config versions that were swapped in.
        broken: broken configs put there; refused: workers that refused one of them, all together.
        astray: broken configs after which some worker no longer had the last good version.
        errors_500: answers 500 by the metrics.
    """

    seconds: dict[str, list[float]]
    good: set[str]
    broken: int = 0
    refused: float = 0
    astray: int = 0
    errors_500: float = 0


def run(settings: Settings) -> ScenarioResult:
    """Swap configs by every way under a steady load, and read what each worker answers."""
    task = common_task(settings.models)
    file = settings.folder / "config" / "fusion.yaml"
    file.parent.mkdir()
    file.write_text(config(task, 1.0))
    environment = {**PATIENT, "DLEN_FUSION_STATE": str(settings.folder / "state")}
    facts = Facts({name: [] for name in SWAPPERS}, set())
    with Ranker(settings, workers=WORKERS, fusion=file.parent, environment=environment) as ranker:
        clients = clients_by_worker(ranker.url, WORKERS)
        reading = Readers(ranker.url, WORKERS, settings.bodies[0], lambda answer: str(answer["config_version"]))
        facts.good |= {config_of(client)["version"] for client in clients.values()}
        with SteadyLoad(settings, ranker.url) as load, reading as readers:
            swap_all(settings, ranker, clients, file, task, facts)
        facts.errors_500 = ranker.metric("dlen_http_requests_total", status="500")
        for client in clients.values():
            client.close()
    figures = {
        "swaps": sum(map(len, facts.seconds.values())),
        "broken_in_between": facts.broken,
        "requests": len(load.outcome.status),
        "answers_read": readers.seen.answers,
        "versions_in_answers": len(readers.seen.rankings),
        **{
            f"seconds_{name}": {"median": round(float(np.median(some)), 3), "max": round(max(some), 3)}
            for name, some in facts.seconds.items()
        },
    }
    return ScenarioResult(checks(load.outcome, readers.seen, facts), figures, timeline_of(load.outcome))


def swap_all(
    settings: Settings,
    ranker: Ranker,
    clients: Mapping[int, httpx.Client],
    file: Path,
    task: str,
    facts: Facts,
) -> None:
    """Swap in one config after another; every tenth is followed by a broken one."""
    total = settings.amount(_FULL, _QUICK)
    for number in range(total):
        name = list(SWAPPERS)[number * len(SWAPPERS) // total]
        weight = 2.0 + number / 8
        start = time.monotonic()
        SWAPPERS[name](file, config(task, weight))
        facts.seconds[name].append(seconds_until_current(clients, task, weight, start))
        versions = {config_of(client)["version"] for client in clients.values()}
        facts.good |= versions
        if number % _BROKEN_EACH == _BROKEN_EACH // 2:
            kinds = list(broken(task).values())
            _put_broken(ranker, clients, name, file, kinds[facts.broken % len(kinds)], facts)
        if (number + 1) % max(6, total // 10) == 0:
            settings.say(
                f"{number + 1} of {total} swaps, slowest {max(max(s) for s in facts.seconds.values() if s):.2f} s"
            )


def checks(outcome: Outcome, seen: Seen, facts: Facts) -> tuple[Check, ...]:
    """Judge the swaps by what callers were answered, and by when workers followed."""
    swaps = sum(map(len, facts.seconds.values()))
    slowest_s = max(max(some, default=0.0) for some in facts.seconds.values())
    return (
        at_most("failed requests", int(((outcome.status < 200) | (outcome.status >= 300)).sum()), 0),
        at_most("failed or degraded answers read", len(seen.failures), 0),
        at_most("versions that ranked in two ways, or as another", seen.mixed, 0),
        at_most("versions in answers that were never good", len(set(seen.rankings) - facts.good), 0),
        at_least("versions seen in answers", len(seen.rankings), swaps / 2),
        at_most("slowest swap until every worker has it", slowest_s, CURRENT_WITHIN_S, "s"),
        at_least("broken configs refused, by the metrics", facts.refused, WORKERS * facts.broken),
        at_most("broken configs that moved a worker", facts.astray, 0),
        at_most("answers 500, by the metrics", facts.errors_500, 0),
    )


def common_task(models: Path) -> str:
    """Return a wanted behaviour that every bundle in a models folder predicts.

    Raises:
        KitInvalid: there is none.
    """
    tasks: set[str] | None = None
    for manifest in sorted(models.glob("*/*/manifest.json")):
        named = json.loads(manifest.read_text())["tasks"]
        here = {str(task["name"]) for task in named if task.get("kind", "positive") == "positive"}
        tasks = here if tasks is None else tasks & here
    if not tasks:
        raise KitInvalid(str(models), found="no task that all bundles have", expected="<name>/<version>/ bundles")
    return min(tasks)


def config(task: str, weight: float) -> str:
    """Return a fusion config whose scores tell its weight."""
    policy = f"{{formula: weighted_sum, signal: marginal, weights: {{{task}: {weight}}}}}"
    return f"format: 1\ndefault: feed\npolicies:\n  feed: {policy}\n"


def broken(task: str) -> dict[str, str]:
    """Return configs that must not serve."""
    good = config(task, 1.5)
    return {
        "cut off": good[: len(good) * 2 // 3],
        "an unknown task": config("no_such_task", 1.5),
        "empty": "",
        "no number": config(task, 1.5).replace("1.5", "many"),
        "a list": "- format: 1\n",
    }


def _put_broken(
    ranker: Ranker, clients: Mapping[int, httpx.Client], name: str, file: Path, text: str, facts: Facts
) -> None:
    labels = {"kind": "config"}
    before = ranker.metric("dlen_load_failures_total", **labels)
    versions = {config_of(client)["version"] for client in clients.values()}
    SWAPPERS[name](file, text)
    until(lambda: ranker.metric("dlen_load_failures_total", **labels) >= before + WORKERS, _GIVE_UP_S)
    facts.broken += 1
    facts.refused += min(WORKERS, ranker.metric("dlen_load_failures_total", **labels) - before)
    facts.astray += {config_of(client)["version"] for client in clients.values()} != versions


def seconds_until_current(clients: Mapping[int, httpx.Client], task: str, weight: float, start: float) -> float:
    """Return the seconds from `start` until every worker's config has the weight; infinity when one never does."""
    waiting = dict(clients)

    def followed() -> bool:
        for pid, client in list(waiting.items()):
            if config_of(client)["config"]["policies"]["feed"]["weights"].get(task) == weight:
                del waiting[pid]
        return not waiting

    return float("inf") if until(followed, _GIVE_UP_S, 0.005) is None else time.monotonic() - start


SCENARIO = Scenario(
    "config-swaps", "1,000 config swaps in three ways under load, broken ones too: none mixed, current within 1 s", run
)
