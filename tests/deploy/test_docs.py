"""The operator's pages hold what they must: an entry per alert, a picture per dashboard, files that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]}


def test_each_alert_has_an_entry_with_meaning_check_and_remedy():
    entries = re.split(r"^## ", (ROOT / "docs/runbook.md").read_text(), flags=re.M)[1:]
    told = {entry.split("\n")[0]: entry for entry in entries}
    assert list(told) == list(alerts())
    for name, severity in alerts().items():
        assert f"\n**{severity}.** " in told[name]
        assert all(re.search(rf"^\*\*{word}\.\*\* \S", told[name], re.M) for word in ("Check", "Remedy")), name


def test_the_runbook_links_to_its_own_entries():
    page = (ROOT / "docs/runbook.md").read_text()
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= {name.lower() for name in alerts()}


def test_each_dashboard_has_its_picture_and_each_name_of_a_panel_its_panel():
    page = (ROOT / "docs/dashboards.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", page)
    boards = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    assert {f"images/dashboard-{board.stem}.png" for board in boards} == set(pictures)
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)
    titles = {panel["title"] for board in boards for panel in json.loads(board.read_text())["panels"]}
    for file in ("dashboards.md", "runbook.md"):
        named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", (ROOT / "docs" / file).read_text()))
        short = {name for name in named if not any(title.startswith(name) for title in titles)}
        assert {name for name in short if not name.startswith("DLEN / ")} == set(), file


def test_paths_in_the_pages_exist():
    for file in ("deploy.md", "dashboards.md", "runbook.md"):
        for path in re.findall(r"`((?:deploy|configs|docs|tests)/[\w./-]+)`", (ROOT / "docs" / file).read_text()):
            assert (ROOT / path).exists(), path
