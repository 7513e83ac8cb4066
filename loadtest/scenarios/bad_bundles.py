"""bad-bundles: spoiled and forged versions, one per gate, are dropped into the models folder under load."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.drive import Outcome
from loadtest.errors import KitInvalid
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.forgeries import FORGERIES, SIGNATURE_FORGERIES, WEIGHT_FORGERIES, Forgery
from loadtest.scenarios.readers import Readers
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_most, equal, timeline_of
from loadtest.scenarios.signing import Signer
from loadtest.scenarios.stack import PATIENT, Ranker, until

WORKERS = 2
TAKEN_OVER_WITHIN_S = 20.0
_REFUSED_WITHIN_S = 20.0
_LOOKS_S = 0.4
"""Longer than the service's `reload_seconds`: a refused one is looked at again, and must not be counted twice."""


@dataclass
class Facts:
    """What became of the bundles.

    Attributes:
        refused: by forgery, how many refusals were counted for its reason.
        versions: model versions in answers while there was no other good one.
        failures: answers that were no whole ranking, over all.
        good_after_s: from the last file of a good version until every worker served it; NaN: never.
    """

    refused: dict[Forgery, int] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    good_after_s: float = float("nan")


def run(settings: Settings) -> ScenarioResult:
    """Drop in one bad version after another, then a good one, copied file by file."""
    models = settings.folder / "models"
    shutil.copytree(settings.models, models)
    good = best_version(models, json.loads(settings.bodies[0]).get("model"))
    weights = WEIGHT_FORGERIES if (good / "model.weights").exists() else ()
    forgeries = [*SIGNATURE_FORGERIES, *FORGERIES, *weights]
    if settings.quick:
        forgeries = forgeries[::5]
    facts, events, signer = Facts(), [], Signer()
    signer.sign(good, good.parent.name, good.name)
    trusted = settings.folder / "trusted.pem"
    trusted.write_bytes(signer.public_pem)
    environment = {**PATIENT, "DLEN_TRUSTED_KEYS_FILE": str(trusted)}
    with Ranker(settings, workers=WORKERS, models=models, environment=environment) as ranker:
        reading = Readers(ranker.url, WORKERS, settings.bodies[0], lambda answer: str(answer["model_version"]))
        with SteadyLoad(settings, ranker.url) as load, reading as readers:
            time.sleep(0.5)
            for number, forgery in enumerate(forgeries, 1):
                events.append((time.monotonic(), "bad version"))
                facts.refused[forgery] = _drop(ranker, signer, good, number, forgery)
            facts.versions = set(readers.seen.rankings)
            settings.say(f"{len(forgeries)} bad versions dropped in, {sum(facts.refused.values())} refusals")
            last = good.with_name(str(int(good.name) + len(forgeries) + 1))
            _copy_slowly(good, last, signer)
            events.append((time.monotonic(), "good version"))
            labels = {"model": good.parent.name, "version": last.name}
            served_s = until(lambda: _all_serve(ranker, readers, last.name, labels), TAKEN_OVER_WITHIN_S + 10)
            facts.good_after_s = float("nan") if served_s is None else served_s
            time.sleep(0.5)
        facts.failures = readers.seen.failures
    figures = {"requests": len(load.outcome.status), "answers_read": readers.seen.answers}
    timeline = timeline_of(load.outcome, tuple((load.seconds(at), name) for at, name in events))
    return ScenarioResult(checks(load.outcome, facts, good.name), figures, timeline)


def checks(outcome: Outcome, facts: Facts, good: str) -> tuple[Check, ...]:
    """Judge each refusal, and what callers were answered."""
    failed = int(((outcome.status < 200) | (outcome.status >= 300)).sum())
    return (
        *(
            equal(f"{forgery.name} → {forgery.reason}", f"{counted} workers", f"{WORKERS} workers")
            for forgery, counted in facts.refused.items()
        ),
        at_most("failed requests", failed, 0),
        at_most("failed or degraded answers read", len(facts.failures), 0),
        equal("versions in answers meanwhile", ", ".join(sorted(facts.versions)), good),
        at_most("a good version, copied file by file, serves after", facts.good_after_s, TAKEN_OVER_WITHIN_S, "s"),
    )


def best_version(models: Path, name: object = None) -> Path:
    """Return the folder of the highest version of a model; without a name, of the first.

    Raises:
        KitInvalid: there is none.
    """
    found = [
        path for path in models.glob(f"{name or '*'}/*") if path.name.isdecimal() and (path / "manifest.json").exists()
    ]
    if not found:
        raise KitInvalid(str(models), found="no bundle", expected="<name>/<version>/ bundles")
    return min(found, key=lambda path: (path.parent.name, -int(path.name)))


def _drop(ranker: Ranker, signer: Signer, good: Path, number: int, forgery: Forgery) -> int:
    """Put a spoiled copy there as a higher version; return how many refusals of its reason are counted then."""
    made = good.with_name(f".{number}")
    shutil.copytree(good, made)
    forgery.spoil(made)
    put = good.with_name(str(int(good.name) + number))
    if forgery not in SIGNATURE_FORGERIES:
        signer.sign(made, good.parent.name, put.name)
    labels = {"kind": "model", "reason": forgery.reason}
    before = ranker.metric("dlen_load_failures_total", **labels)
    made.rename(put)
    until(lambda: ranker.metric("dlen_load_failures_total", **labels) >= before + WORKERS, _REFUSED_WITHIN_S)
    time.sleep(_LOOKS_S)
    counted = int(ranker.metric("dlen_load_failures_total", **labels) - before)
    put.rename(good.with_name(f".gone-{number}"))
    return counted


def _copy_slowly(good: Path, to: Path, signer: Signer) -> None:
    """Copy file by file in place, manifest last, as a plain `cp` may: not whole for a while; then sign."""
    to.mkdir()
    files: Sequence[Path] = sorted(good.iterdir(), key=lambda file: file.name == "manifest.json")
    for file in files:
        shutil.copy(file, to)
        time.sleep(0.1)
    signer.sign(to, to.parent.name, to.name)


def _all_serve(ranker: Ranker, readers: Readers, version: str, labels: dict[str, str]) -> bool:
    return version in readers.seen.rankings and ranker.metric("dlen_model_info", **labels) == 1


SCENARIO = Scenario(
    "bad-bundles", "spoiled and forged versions, one per gate, under load: none serves, each is counted by reason", run
)
