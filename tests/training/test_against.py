"""The comparison with other libraries: ours is really trained, a peer is a stand-in for their scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli import main
from training import against
from training.dataset import read_prepared
from training.errors import ConfigInvalid

TINY = against.Sizes("tiny", 6000, 2, (8,), (4,), batch_size=512)
ANSWERS = """
import json, sys, pathlib, numpy as np
data, settings, out = pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]), pathlib.Path(sys.argv[4])
assert sys.argv[1].endswith('fuxictr_mmoe.py') and 'model' not in settings and settings['codes'] == 22
out.mkdir(exist_ok=True)
for split in ('validation', 'test'):
    labels = np.load(data / split / 'labels.npy')
    np.save(out / f'{split}.npy', labels[:, :1].repeat(5, axis=1).astype(np.float32))
(out / 'result.json').write_text(json.dumps({'cpu_s': 2.0, 'wall_s': 3.0, 'versions': {'fuxictr': '1.2'}}))
"""


def stand_in(environments: Path, script: str) -> Path:
    """Install a "FuxiCTR" whose Python runs `script`, with the arguments it was given."""
    python = environments / "fuxictr" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (environments / "script.py").write_text(script)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {environments / "script.py"} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return the figures of ours and of a stand-in that answers the first label as every task's probability."""
    environments = tmp_path_factory.mktemp("environments")
    stand_in(environments, ANSWERS)
    return against.measure_peers(TINY, 20, 1, environments, lambda news: None, environments / "lock")


def test_ours_and_an_installed_peer_are_compared_and_those_not_there_named(measured):
    assert set(measured["libraries"]) == {*against.OURS, "fuxictr"}
    assert measured["skipped"] == ["torch-rechub", "deepctr-torch"]
    peer, ours = measured["libraries"]["fuxictr"], measured["libraries"]["dlen"]
    assert (peer["rows_per_cpu_s"], peer["rows_per_wall_s"], peer["auc"][0]) == (3000, 2000, 1.0)
    assert ours["rows_per_cpu_s"] > 0 and len(ours["auc"]) == 5
    ratio = measured["against_fastest"]["cpu_s"]
    assert ratio == pytest.approx(ours["rows_per_cpu_s"] / peer["rows_per_cpu_s"])
    cost = ours["rows_per_cpu_s"] / measured["libraries"]["dlen, with P(UP)"]["rows_per_cpu_s"] - 1
    assert measured["cost_of_p_up"] == pytest.approx(cost)


def test_the_command_shows_both_sizes_and_writes_figures_and_plot(measured, monkeypatch, tmp_path, capsys):
    sizes = []
    monkeypatch.setattr(against, "measure_peers", lambda *given: sizes.append(given[0]) or measured)
    files = ["--json", str(tmp_path / "peers.json"), "--plot", str(tmp_path / "peers.png")]
    assert main(["benchmark", "train-peers", "--rows", "9000", "3000", *files]) == 0
    assert [(x.rows, x.expert_hidden) for x in sizes] == [(9000, (64, 32)), (3000, (256, 128, 64))]
    assert json.loads((tmp_path / "peers.json").read_text()) == [json.loads(json.dumps(measured))] * 2
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "fuxictr 1.2" in shown and "skipped: torch-rechub, deepctr-torch (not installed)" in shown


def test_a_peer_that_fails_is_named_with_its_last_words(prepared, tmp_path):
    python = stand_in(tmp_path, "import no_such_library\n")
    with pytest.raises(ConfigInvalid, match="fuxictr: got ModuleNotFoundError: No module named 'no_such_library'"):
        against._epoch("fuxictr", python, prepared, {}, tmp_path / "out", read_prepared(prepared))


def test_the_rate_that_suits_a_library_is_chosen_on_validation_rows_and_shown_on_test_rows():
    def epoch(rate, cpu_s, validation, test):
        return {
            "cpu_s": cpu_s, "wall_s": 1.0, "learning_rate": rate, "validation": validation, "test": test, "versions": {}
        }  # fmt: skip

    epochs = [epoch(0.1, 1.0, [0.6], [0.9]), epoch(0.2, 4.0, [0.7], [0.65]), epoch(0.3, 2.0, [0.5], [0.95])]
    figures = against._figures(100, epochs)
    assert (figures["learning_rate"], figures["auc"], figures["rows_per_cpu_s"]) == (0.2, [0.65], 50.0)
    assert figures["rows_per_cpu_s_range"] == [25.0, 100.0]


def test_every_peer_has_its_script_and_a_pinned_list_that_begins_with_torch():
    for name, script in against.PEERS.items():
        assert (against.SCRIPTS / script).is_file()
        lines = [x for x in (against.SCRIPTS / f"{name}.txt").read_text().splitlines() if not x.startswith("#")]
        assert all("==" in line for line in lines)
        assert sum(line.startswith("torch==") for line in lines) == 1
