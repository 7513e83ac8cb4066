"""The dashboards are current, and every query of every panel finds data in a real Prometheus."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import skip_or_fail

ROOT = Path(__file__).parents[2]
RATE_SECONDS = 20
MAY_BE_EMPTY = {
    "Alerts firing": "the faults are shorter than what an alert waits for",
    "Rankers down": "the ranker lives all through",
    "Policy failures": "fusion protects its arithmetic: no config makes a score that is no number",
}


@pytest.fixture(scope="module")
def files():
    return sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory, models, bodies, system_command):
    """A stack at the end of a rehearsal, when it began, and its traffic."""
    from deploy.rehearsal import rehearse, started

    prometheus = system_command("prometheus")
    with started(tmp_path_factory.mktemp("rehearsal"), models, prometheus) as stack:
        began = time.time()
        traffic = rehearse(stack, bodies, seconds=14)
        time.sleep(2.5)  # two more scrapes and evaluations
        yield stack, began, traffic


def value(stack, expr):
    answer = httpx.get(f"{stack.prometheus}/api/v1/query", params={"query": expr}).json()
    (result,) = answer["data"]["result"]
    return float(result["value"][1])


def test_the_checked_in_dashboards_are_current():
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        skip_or_fail("grafana-foundation-sdk is not installed")
    words = [sys.executable, "-m", "deploy.dashboards", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_dashboards_read_only_metrics_and_recordings_that_there_are(files):
    read = " ".join(file.read_text() for file in files)
    documented = set(re.findall(r"^\| `(dlen_\w+)`", (ROOT / "docs/serving.md").read_text(), re.M))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"(?<![\w:])dlen_\w+", read)}
    assert len(names) > 15 and names <= documented
    recorded = set(re.findall(r"record: (\S+)", (ROOT / "deploy/prometheus/rules/recording.yml").read_text()))
    assert set(re.findall(r"\bjob\w*:\w+:\w+", read)) <= recorded


def test_dashboards_have_their_own_names_and_read_the_provisioned_source(files):
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    documents = [json.loads(file.read_text()) for file in files]
    assert {"DLEN / Service", "DLEN / Model quality", "DLEN / Experiments"} == {d["title"] for d in documents}
    assert len({document["uid"] for document in documents}) == 3
    for document in documents:
        panels = [panel for panel in document["panels"] if panel["type"] != "row"]
        assert len({panel["title"] for panel in panels}) == len(panels) == len({p["id"] for p in panels})
        for panel in panels:
            assert panel["description"] and panel["targets"]
            assert {t["datasource"]["uid"] for t in panel["targets"]} == {source["uid"]}


def test_failed_answers_are_red_and_good_ones_green(files):
    from deploy.queries import read_panels

    (panel,) = (p for file in files for p in read_panels(file) if p.title == "Rank requests by status")
    drawn = {
        status: [colour for names, colour in panel.colours if re.search(names, status)]
        for status in ("200", "422", "503", "504", "500")
    }
    assert drawn == {"200": ["green"], "422": ["orange"], "503": ["red"], "504": ["dark-red"], "500": ["dark-red"]}


@pytest.mark.real_component
def test_every_query_of_every_panel_finds_data(rehearsed, files):
    from deploy.queries import ask, read_panels

    stack, began, _ = rehearsed
    empty, asked = set(), 0
    for file in files:
        for panel in read_panels(file):
            for expr, legend in panel.queries:
                bare = expr.removesuffix(" or vector(0)")
                lines = ask(stack.prometheus, bare, legend, start=began, end=time.time(), rate_seconds=RATE_SECONDS)
                asked += 1
                if not any(line.points for line in lines) or any("{{" in line.name for line in lines):
                    empty.add(panel.title)
    assert asked > 40
    assert empty <= MAY_BE_EMPTY.keys()


@pytest.mark.real_component
def test_what_was_planted_is_what_prometheus_tells(rehearsed):
    stack, began, traffic = rehearsed
    for status, count in traffic.statuses.items():
        told = value(stack, f'sum(dlen_http_requests_total{{route="/v1/rank",status="{status}"}})')
        assert told == count, status
    assert {200, 422, 503} <= set(traffic.statuses)
    missing = f'sum(dlen_feature_missing_total{{feature="{traffic.first_user_feature}"}})'
    assert 0 < value(stack, missing) < traffic.statuses[200]
    assert value(stack, "max_over_time(dlen_rank_in_flight_limit[1m])") >= 2
    assert value(stack, 'min_over_time(dlen_last_reload_successful{kind="config"}[1m])') == 0
    assert value(stack, 'dlen_last_reload_successful{kind="config"}') == 1
    for reason in ("limit", "deadline"):
        assert value(stack, f'sum(dlen_rank_shed_total{{reason="{reason}"}})') > 0
    exposures = 'sum(dlen_rank_exposures_total{{layer="ranking",forced="false"{}}})'
    share = value(stack, exposures.format(',variant="up_on"')) / value(stack, exposures.format(""))
    assert 0.35 < share < 0.65
    assert value(stack, 'sum(dlen_rank_exposures_total{forced="true"})') > 0


@pytest.mark.real_component
def test_rules_of_a_running_prometheus_are_healthy(rehearsed):
    stack, _, _ = rehearsed
    groups = httpx.get(f"{stack.prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    alerts = httpx.get(f"{stack.prometheus}/api/v1/alerts").json()["data"]["alerts"]
    assert alerts, "the planted faults leave alerts pending"
    for alert in alerts:
        assert "error expanding" not in str(alert["annotations"])


@pytest.mark.real_component
def test_promtool_finds_nothing_wrong_with_the_metrics(rehearsed, system_command):
    stack, _, _ = rehearsed
    text = httpx.get(f"{stack.metrics}/metrics").text
    words = [system_command("promtool"), "check", "metrics"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
