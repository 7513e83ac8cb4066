"""`dlen prepare`, `dlen request` and `dlen benchmark lightgbm` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cli import main
from training.schema import DatasetSchema

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_second_prepare_says_that_nothing_was_done(simulated, tmp_path, capsys):
    arguments = ("prepare", "--source", "simulator", "--input", simulated, "--out", tmp_path / "out")
    assert run(*arguments) == 0
    assert "up to date" not in capsys.readouterr().out
    assert run(*arguments, "--json", tmp_path / "summary.json") == 0
    assert "up to date" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(split["rows"] for split in summary["splits"].values()) == 12_000


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert run("prepare", "--source", "table", "--input", tmp_path / "x.csv", "--out", tmp_path / "o") == 2
    assert capsys.readouterr().err == (
        "dlen: error: --schema: got nothing, want a dataset schema file for source 'table'\n"
    )
    assert run("prepare", "--source", "simulator", "--input", tmp_path, "--out", tmp_path / "o") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_one_request_is_a_document_and_several_are_lines(prepared, tmp_path):
    one, many = tmp_path / "one.json", tmp_path / "many.jsonl"
    assert run("request", "--data", prepared, "--candidates", 5, "--out", one) == 0
    assert len(json.loads(one.read_text())["candidates"]) == 5
    assert run("request", "--data", prepared, "--candidates", 5, "--count", 3, "--out", many) == 0
    bodies = [json.loads(line) for line in many.read_text().splitlines()]
    assert bodies[0] == json.loads(one.read_text())
    assert len(bodies) == 3


@pytest.mark.filterwarnings("ignore")  # lightgbm's own
def test_lightgbm_learns_the_simulated_tasks(prepared, tmp_path):
    assert run("benchmark", "lightgbm", "--data", prepared, "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["tasks"]) == {"click", "like", "follow", "comment", "forward"}
    assert figures["tasks"]["click"]["auc"] > 0.6


def test_the_documented_schemas_are_valid():
    blocks = [block.split("```")[0] for block in DOCS.read_text().split("```yaml\n")[1:]]
    first, dwell, wide = (yaml.safe_load(block) for block in blocks)
    for document in (first, first | dwell, wide):
        DatasetSchema.model_validate(document)
    assert DatasetSchema.model_validate(first | dwell).dwell is not None


@pytest.mark.parametrize("rows", ["", "1,2\n", "1,nan\n"])
def test_an_error_in_a_csv_file_names_the_file_that_was_given(rows, tmp_path, capsys):
    (tmp_path / "log.csv").write_text("x,buy\n0.5,1\n0.1,0\n" + rows if rows else "x,buy\n")
    (tmp_path / "s.yaml").write_text(
        "split: {by: random}\n"
        "features: [{name: x, side: item, kind: numeric}]\n"
        "tasks: [{name: buy, label: buy, kind: positive}]\n"
    )
    arguments = ["--input", tmp_path / "log.csv", "--schema", tmp_path / "s.yaml", "--out", tmp_path / "out"]
    assert main(["prepare", "--source", "table", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dlen: error: {tmp_path / 'log.csv'}: ")
    assert "staging" not in error
