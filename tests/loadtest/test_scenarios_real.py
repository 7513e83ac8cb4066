"""Scenarios against real rankers, a little of each; what depends on the speed of the machine is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def material(prepared: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a bundle and requests that fit it."""
    file = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    words = ["request", "--data", str(prepared), "--split", "test", "--count", "8", "--candidates", "20"]
    assert main([*words, "--out", str(file)]) == 0
    return ["--models", str(models), "--request", str(file), "--fusion", str(ROOT / "configs/fusion.yaml")]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["worker-sigstop", "config-swaps", "bad-bundles"])
def test_what_is_promised_holds(name, material, tmp_path, capsys):
    judge(name, material, tmp_path, capsys)


@pytest.mark.timeout(200)
@pytest.mark.real_component
def test_no_request_fails_in_a_rolling_restart_behind_nginx(material, tmp_path, capsys, system_command):
    system_command("nginx")
    judge("rolling-restart", material, tmp_path, capsys)


def judge(name: str, material: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["loadtest", "scenario", name, "--quick", "--rate", "30", "--json", str(folder / "found.json"), *material])
    said = capsys.readouterr().out
    checks = json.loads((folder / "found.json").read_text())["results"][name]["checks"]
    lasting = [check for check in checks if not check["expected"].endswith((" s", " ms"))]
    assert len(lasting) >= 3 and all(check["passed"] for check in lasting), said
