import json

import pytest

from cli import main


def test_simulate_writes_the_folder_and_prints_its_figures(tmp_path, capsys):
    code = main(
        ["simulate", "--out", str(tmp_path / "sim"), "--impressions", "5000", "--seed", "1"]
        + ["--json", str(tmp_path / "figures.json")]
    )
    assert code == 0
    assert "rate of click" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tmp_path / "sim" / "simulation.json").read_text())
    assert figures["impressions"] == 5000


@pytest.mark.parametrize(
    "options",
    [
        ["--impressions", "5", "--seed", "1"],
        ["--impressions", "5000", "--seed", "1", "--scenario", "nosuch"],
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, options):
    assert main(["simulate", "--out", str(tmp_path / "sim"), *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
