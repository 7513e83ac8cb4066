import json
import sys

import pytest

from cli import main
from training import scale
from training.errors import BenchmarkFailed
from training.scale import STAGES, estimate, run_measured


def test_memory_is_told_apart_and_time_is_that_of_the_command(tmp_path):
    code = (
        "import mmap, sys, time; from pathlib import Path; own = bytearray(b'x') * (60 << 20);"
        "path = Path(sys.argv[1]); path.write_bytes(bytes(40 << 20)); file = path.open('rb');"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(mapped[::4096]); time.sleep(0.5)"
    )
    found = run_measured([sys.executable, "-c", code, str(tmp_path / "file")], tmp_path / "log")
    assert found["peak_anonymous_mib"] >= 60
    assert found["peak_file_mib"] >= 40
    assert found["peak_resident_mib"] >= 100
    assert found["cpu_s"] > 0


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path):
    with pytest.raises(BenchmarkFailed, match="got 3: so be it, want exit code 0"):
        run_measured([sys.executable, "-c", "print('so be it'); raise SystemExit(3)"], tmp_path / "log")


def test_estimates_grow_with_the_rows_and_memory_with_the_order_alone():
    stage = {"cpu_s": 36.0, "rows": 100, "peak_anonymous_mib": 7.0}
    measured = {"rows": 200, "raw_bytes": 2**30, "prepared_bytes": 2**29, "prepare": stage, "train": stage}
    found = estimate(2000, measured)
    assert found["cpu_h"] == {"prepare": 0.1, "train": 0.1}
    assert (found["raw_gib"], found["prepared_gib"]) == (10, 5)
    assert found["prepare_anonymous_mib"] == 7
    assert found["train_anonymous_mib"] == pytest.approx(7 + 900 * 8 / 2**20)


def test_the_command_measures_every_stage_once_and_cleans_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "START_UP_ROWS", 2000)
    (tmp_path / "work" / "2000").mkdir(parents=True)  # as if measured before
    for name in STAGES:
        (tmp_path / "work" / "2000" / f"{name}.json").write_text('{"cpu_s": 0.01, "peak_resident_mib": 1}')
    (tmp_path / "work" / "2000" / "sizes.json").write_text("{}")
    (tmp_path / "work" / "4000" / ".raw.partial").mkdir(parents=True)  # as a killed benchmark leaves it
    work, figures, plot = tmp_path / "work", tmp_path / "scale.json", tmp_path / "scale.png"
    command = ["benchmark", "scale", "--rows", "4000", "--work", str(work), "--json", str(figures), "--plot", str(plot)]
    assert main(command) == 0
    document = json.loads(figures.read_text())
    (size,) = document["sizes"]
    assert size["rows"] == 4000
    assert all(size[stage]["peak_resident_mib"] > 10 and size[stage]["cpu_s"] > 0 for stage in STAGES)
    assert 3000 < size["train"]["rows"] < 3600
    assert size["raw_bytes"] > size["rows"] * 50
    assert [estimated["rows"] for estimated in document["estimates"]] == [84_000_000, 1_000_000_000]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {path.suffix for path in (work / "4000").iterdir()} == {".json", ".log"}
    assert "| 4,000 | prepare |" in capsys.readouterr().out
    monkeypatch.setattr(scale, "run_measured", None)  # nothing is measured again
    assert main(command) == 0
    assert json.loads(figures.read_text()) == document
