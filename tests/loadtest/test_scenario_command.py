"""`dlen loadtest scenario`: what it says, draws and refuses, and that its list and the docs agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import main
from loadtest.errors import ScenarioUnknown, ServerFailed
from loadtest.scenarios import (
    catalogue,
)
from loadtest.scenarios.scenario import Scenario, ScenarioResult, Settings, at_most, timeline_of
from loadtest.scenarios.show import plot_timeline
from tests.loadtest.outcomes import LOST, outcome


@pytest.fixture
def request_file(tmp_path):
    path = tmp_path / "request.json"
    path.write_text('{"candidates": [{"id": "a", "features": {"x": 1}}]}')
    return path


def test_the_command_says_pass_fail_and_skip_by_table_json_picture_and_code(
    request_file, tmp_path, capsys, monkeypatch
):
    def run(settings: Settings) -> ScenarioResult:
        checks = (at_most("lost", len(settings.bodies), settings.rate_per_s),)
        return ScenarioResult(checks, {"seed": settings.seed}, timeline_of(outcome(LOST), ((1.0, "hit"),)))

    made = (Scenario("one", "first", run), Scenario("two", "second", run, needs=("no-such-command",)))
    monkeypatch.setattr(catalogue, "SCENARIOS", made)
    words = ["loadtest", "scenario", "all", "--request", str(request_file), "--seed", "7"]
    outputs = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert main([*words, *outputs]) == 0
    said = capsys.readouterr().out
    assert "skipped: not installed: no-such-command" in " ".join(said.split())
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert results["one"]["passed"] and results["one"]["figures"] == {"seed": 7}
    assert results["two"] == {"skipped": "not installed: no-such-command"}
    assert (tmp_path / "a-one.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--rate", "0.5"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["loadtest", "scenario", "two", "--request", str(request_file)]) == 1


def test_a_server_that_fails_is_a_failed_scenario_with_its_log(request_file, capsys, monkeypatch):
    def run(settings: Settings) -> ScenarioResult:
        (settings.folder / "ranker.log").write_text("what the server said last")
        raise ServerFailed("ranker", found="exit code 1", expected="a server")

    monkeypatch.setattr(catalogue, "SCENARIOS", (Scenario("one", "first", run),))
    assert main(["loadtest", "scenario", "one", "--request", str(request_file)]) == 1
    said = capsys.readouterr().out
    assert "what the server said last" in said and "exit code 1" in said


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        [],
        ["freeze", "--rate", "0"],
        ["freeze", "--seed", "-1"],
        ["freeze", "--models", "."],
        ["freeze", "--fusion", "nowhere"],
    ],
)
def test_bad_usage_is_one_line_and_code_2(words, capsys):
    assert main(["loadtest", "scenario", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_list_tells_every_scenario(capsys):
    assert main(["loadtest", "scenario", "list"]) == 0
    said = capsys.readouterr().out
    assert main(["loadtest", "scenario", "--list"]) == 0
    assert capsys.readouterr().out == said
    names = [scenario.name for scenario in catalogue.SCENARIOS]
    assert len(set(names)) == len(names) >= 9
    assert {line.split(" ")[0] for line in said.splitlines()} >= set(names)


def test_every_scenario_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text()
    assert [name.name for name in catalogue.SCENARIOS if f"| `{name.name}` |" not in page] == []


def test_unknown_scenarios_are_refused():
    with pytest.raises(ScenarioUnknown, match="freeze"):
        catalogue.chosen(["freeze", "other"])


def test_a_timeline_is_drawn_even_of_nothing():
    assert plot_timeline("x", timeline_of(outcome(size=0))).startswith(b"\x89PNG")
