import json
from dataclasses import replace

import pytest

from loadtest.baseline import read_baseline, rounds_document
from loadtest.errors import BaselineInvalid
from loadtest.run import Load
from loadtest.traffic import parse_target

LOAD = Load(rate_per_s=50, duration_s=5)
BODIES = [b'{"a": 1}']
ROUNDS = [{"p50_ms": 1.0, "p99_ms": 2.0, "achieved_rate": 50.0}] * 3


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(rounds_document(parse_target("http://h"), LOAD, BODIES, ROUNDS)))
    return path


def test_a_baseline_reads_back(file):
    assert read_baseline(file, LOAD, BODIES) == ROUNDS


@pytest.mark.parametrize("changed", [{"rate_per_s": 60}, {"duration_s": 6}, {"arrivals": "constant"}, {"seed": 2}])
def test_a_baseline_of_another_load_is_refused_by_the_setting(file, changed):
    with pytest.raises(BaselineInvalid, match=next(iter(changed))):
        read_baseline(file, replace(LOAD, **changed), BODIES)


def test_a_baseline_of_other_bodies_is_refused(file):
    with pytest.raises(BaselineInvalid, match="other request bodies"):
        read_baseline(file, LOAD, [b'{"a": 2}'])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "rounds", "format": 1}', '{"kind": "run", "format": 1}'])
def test_another_document_is_refused(file, text):
    file.write_text(text)
    with pytest.raises(BaselineInvalid):
        read_baseline(file, LOAD, BODIES)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BaselineInvalid, match="No such file"):
        read_baseline(tmp_path / "nosuch.json", LOAD, BODIES)
