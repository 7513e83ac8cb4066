"""What size costs: made-up Ali-CCP logs of growing size, generated, prepared and trained on for one epoch.

Each stage is a process of its own, the very command that a user types, and is measured from outside: CPU time, peak
resident memory, and its two parts, anonymous pages (which must fit) and pages of mapped files (which the kernel may
drop at any time). Legend: MiB are 2^20 bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle.files import write_file
from training.dataset import read_prepared
from training.errors import BenchmarkFailed

Document = dict[str, Any]
STAGES = ("simulate", "prepare", "train")
SETTINGS = (
    "experts=2", "expert_hidden=[64,32]", "batch_size=4096", "epochs=1", "evaluations_per_epoch=1",
    "sparse_tables=true", "average=0",
)  # fmt: skip
START_UP_ROWS = 10_000
"""Rows of a first, uncounted size: its CPU time is what a command costs before any row matters."""
ESTIMATED_ROWS = (84_000_000, 1_000_000_000)
_SEED = 1
_SAMPLED_EVERY_S = 0.1
_MIB = 1 << 20


def measure_scale(
    rows: Sequence[int], model: str, work: Path, say: Callable[[str], None], population_of: int | None = None
) -> Document:
    """Return the figures of every size; stages measured before in the folder `work` are not measured again.

    With `population_of`, every log has the users and items of a log of so many rows, so that tables do not grow.

    Raises:
        BenchmarkFailed: a command failed; names it and the last line it wrote.
    """
    start_up = _measure_size(START_UP_ROWS, model, work, say, population_of)
    sizes = [_measure_size(size, model, work, say, population_of) for size in sorted(rows)]
    for size in sizes:
        for stage in STAGES:
            size[stage]["rows_per_cpu_s"] = size[stage]["rows"] / (size[stage]["cpu_s"] - start_up[stage]["cpu_s"])
    return {
        "model": model,
        "population_of": population_of,
        "settings": list(SETTINGS),
        "threads": 1,
        "start_up": start_up,
        "sizes": sizes,
        "estimates": [estimate(size, sizes[-1]) for size in ESTIMATED_ROWS],
    }


def estimate(rows: int, measured: Document) -> Document:
    """Return what `rows` rows would cost at the rates of a measured size; memory grows by an epoch's order alone."""
    factor = rows / measured["rows"]
    more_train_rows = measured["train"]["rows"] * (factor - 1)
    return {
        "rows": rows,
        "cpu_h": {stage: measured[stage]["cpu_s"] * factor / 3600 for stage in ("prepare", "train")},
        "raw_gib": measured["raw_bytes"] * factor / 2**30,
        "prepared_gib": measured["prepared_bytes"] * factor / 2**30,
        "prepare_anonymous_mib": measured["prepare"]["peak_anonymous_mib"],
        "train_anonymous_mib": measured["train"]["peak_anonymous_mib"] + 8 * more_train_rows / _MIB,
    }


def _measure_size(rows: int, model: str, work: Path, say: Callable[[str], None], population_of: int | None) -> Document:
    folder = work / (f"{rows}" if population_of is None else f"{rows}-population-of-{population_of}")
    raw, data, run = folder / "raw", folder / "data", folder / "run"
    commands = {
        "simulate": ["--layout", "aliccp", "--rows", str(rows), "--seed", str(_SEED), "--out", str(raw)]
        + ([] if population_of is None else ["--population-of", str(population_of)]),
        "prepare": ["--source", "aliccp", "--input", str(raw), "--out", str(data)],
        "train": ["--data", str(data), "--model", model, "--threads", "1", "--out", str(run)]
        + [part for setting in SETTINGS for part in ("--set", setting)],
    }
    figures: Document = {"rows": rows}
    for stage in STAGES:
        path = folder / f"{stage}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for made in (raw, data, run)[STAGES.index(stage) :]:  # begun by a killed benchmark: not to be resumed
                shutil.rmtree(made, ignore_errors=True)
                shutil.rmtree(made.parent / f".{made.name}.partial", ignore_errors=True)
            measured = run_measured([sys.executable, "-m", "cli", stage, *commands[stage]], folder / f"{stage}.log")
            measured["rows"] = read_prepared(data).info.splits["train"].rows if stage == "train" else rows
            write_file(path, json.dumps(measured).encode())
        shown = figures[stage] = json.loads(path.read_text("utf-8"))
        say(f"{rows:,} rows, {stage}: {shown['cpu_s']:.1f} s of CPU, peak {shown['peak_resident_mib']:,.0f} MiB")
    path = folder / "sizes.json"
    if not path.exists():
        aucs = json.loads((run / "result.json").read_text("utf-8"))["best"]["auc"]
        sizes = {"raw_bytes": _bytes_in(raw), "prepared_bytes": _bytes_in(data), "validation_auc": aucs}
        write_file(path, json.dumps(sizes).encode())
    for made in (raw, data, run):
        shutil.rmtree(made, ignore_errors=True)
    figures |= json.loads(path.read_text("utf-8"))
    return figures


def run_measured(command: Sequence[str], log: Path) -> Document:
    """Return CPU and wall time and peak memory of a command, run to its end with one thread.

    Raises:
        BenchmarkFailed: it did not end well.
    """
    threads = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    anonymous = of_files = 0
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | threads)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            pages = _pages_kib(process.pid)
            anonymous, of_files = max(anonymous, pages[0]), max(of_files, pages[1])
            time.sleep(_SAMPLED_EVERY_S)
    if process.returncode:
        lines = log.read_text("utf-8", "replace").splitlines() or ["no output"]
        raise BenchmarkFailed(
            " ".join(command[2:5]), found=f"{process.returncode}: {lines[-1]}", expected="exit code 0"
        )
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - begun,
        "peak_resident_mib": usage.ru_maxrss / 1024,
        "peak_anonymous_mib": anonymous / 1024,
        "peak_file_mib": of_files / 1024,
    }


def _pages_kib(pid: int) -> tuple[int, int]:
    """Return resident anonymous memory and resident pages of files; zeros once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    kib = {name: int(value.split()[0]) for name, value in found.items()}
    return kib.get("RssAnon", 0), kib.get("RssFile", 0) + kib.get("RssShmem", 0)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
