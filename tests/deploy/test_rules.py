"""Alerts fire when they should and stay quiet when they should, by Prometheus's own tool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
CASES = [Path(__file__).with_name(name) for name in ("alerts.yml", "alerts_of_days.yml")]


def alerts() -> dict[str, dict[str, Any]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.real_component
def test_prometheus_reads_its_config_and_all_rules(system_command):
    told = run(system_command("promtool"), "check", "config", ROOT / "deploy/prometheus/prometheus.yml")
    assert f"{len(RULES)} rule files found" in told


@pytest.mark.real_component
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_quiet(system_command, cases):
    run(system_command("promtool"), "test", "rules", cases)


def test_each_alert_has_a_case_where_it_fires_and_one_where_it_stays_quiet():
    cases = [test for file in CASES for test in yaml.safe_load(file.read_text())["tests"]]
    assert {test["name"] for test in cases} == {f"{a} {word}" for a in alerts() for word in ("fires", "stays quiet")}
    for test in cases:
        (asked,) = test["promql_expr_test"]
        assert f'"{test["name"].partition(" ")[0]}"' in asked["expr"]
        assert bool(asked["exp_samples"]) == test["name"].endswith(" fires")


def test_each_alert_says_whom_it_wakes_what_is_wrong_and_where_to_read_on():
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_rules_read_only_metrics_that_the_service_has():
    documented = set(re.findall(r"^\| `(dlen_\w+)`", (ROOT / "docs/serving.md").read_text(), re.M))
    read = set(re.findall(r"(?<![\w:])dlen_\w+", " ".join(file.read_text() for file in RULES)))
    assert {re.sub(r"_bucket$", "", name) for name in read} <= documented
    recorded = set(re.findall(r"record: (\S+)", RULES[1].read_text()))
    assert set(re.findall(r"\bjob\w*:\w+:\w+", RULES[0].read_text())) <= recorded
