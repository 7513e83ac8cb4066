"""How fast other libraries train the same MMOE on the same made-up rows, and how good it gets there.

Every library runs in an environment of its own, by its own trainer, data loader and MMOE (scripts in `peers/`), in a
process per epoch with one thread; ours runs in such a process too. Rounds are interleaved: one epoch of each, then
the next round with another learning rate, so that a library's AUC is that of the rate that suits it (the best on the
validation rows, shown on the test rows).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from training.dataset import Prepared, read_prepared
from training.errors import ConfigInvalid
from training.metrics import auc
from training.speed import EMBEDDING_SIZE, write_rows

SCRIPTS = Path(__file__).parent / "peers"
PEERS = {"torch-rechub": "rechub_mmoe.py", "deepctr-torch": "deepctr_mmoe.py", "fuxictr": "fuxictr_mmoe.py"}
OURS = {
    "dlen": {"model": "mmoe"},
    "dlen, bfloat16": {"model": "mmoe", "precision": "bfloat16"},
    "dlen, with P(UP)": {"model": "dlen-mmoe"},
    "dlen, with P(UP), bfloat16": {"model": "dlen-mmoe", "precision": "bfloat16"},
}
"""Name in the tables → settings. No peer has a switch for products in bfloat16."""
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
EPOCH_LIMIT_S = 900

Document = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """Sizes of an MMOE and the training rows it is measured on."""

    title: str
    rows: int
    experts: int
    expert_hidden: tuple[int, ...]
    tower_hidden: tuple[int, ...] = (32,)
    batch_size: int = 2048


SMALL = Sizes("3 experts [64, 32]", 600_000, 3, (64, 32))
PAPER = Sizes("5 experts [256, 128, 64], the paper's", 100_000, 5, (256, 128, 64))


def install_peers(environments: Path, say: Say) -> None:
    """Make the environments that are not there; torch goes first and by itself, so that its index is the CPU's.

    Raises:
        ConfigInvalid: pip could not install a peer; its last line says why.
    """
    for name in PEERS:
        folder = environments / name
        if (folder / "installed").exists():
            continue
        say(f"installing {name} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        wanted = SCRIPTS / f"{name}.txt"
        torch = next(line for line in wanted.read_text().splitlines() if line.startswith("torch=="))
        for what in ([torch], ["-r", str(wanted)]):
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run([*pip, *what], capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigInvalid(name, found=_last_line(done.stderr), expected="an environment that installs")
        (folder / "installed").touch()


def measure_peers(
    sizes: Sizes, codes: int, rounds: int, environments: Path, say: Say, lock: Path | None = None
) -> Document:
    """Return rows per second and AUC of each library, round by round and in the middle.

    Args:
        sizes: of the network and the data.
        codes: values of each feature.
        rounds: epochs of each library; with four all learning rates are seen.
        environments: folder of the peers' environments; those not there are skipped by name.
        say: takes one line of news per epoch.
        lock: a file held locked during each round, for machines on which others take timings too.
    """
    present = {name: environments / name / "bin" / "python" for name in PEERS}
    skipped = [name for name, python in present.items() if not python.exists()]
    subjects = [*OURS, *(name for name in PEERS if name not in skipped)]
    found: dict[str, list[Document]] = {name: [] for name in subjects}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        write_rows(folder, sizes.rows, codes, seed=1)
        data = read_prepared(folder)
        for number in range(rounds):
            rate = RATES[number % len(RATES)]
            with _held(lock):
                for name in subjects[number % len(subjects) :] + subjects[: number % len(subjects)]:
                    settings = _settings(sizes, codes + 2, rate, number + 1, OURS.get(name, {}))
                    epoch = _epoch(name, present.get(name), folder, settings, Path(made) / "out", data)
                    found[name].append(epoch | {"learning_rate": rate})
                    say(f"round {number + 1}: {name}, {sizes.rows / epoch['cpu_s']:,.0f} rows per second of CPU")
    return _document(sizes, codes, rounds, found, skipped)


def _settings(sizes: Sizes, codes: int, rate: float, seed: int, own: Document) -> Document:
    shape = {name: value for name, value in asdict(sizes).items() if name not in ("title", "rows")}
    return shape | own | {"codes": codes, "embedding_size": EMBEDDING_SIZE, "learning_rate": rate, "seed": seed}


def _epoch(name: str, python: Path | None, folder: Path, settings: Document, out: Path, data: Prepared) -> Document:
    """Return CPU and wall seconds, versions, and the AUCs of validation and test rows of one epoch."""
    script = [sys.executable, "-m", "training.peer_round"] if python is None else [str(python), SCRIPTS / PEERS[name]]
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    environment = os.environ | threads
    if python is None:  # as if it had been started from here
        environment |= {"PYTHONPATH": str(SCRIPTS.parents[1])}
    command = [*map(str, script), str(folder), json.dumps(settings), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=EPOCH_LIMIT_S, env=environment)
    if done.returncode:
        raise ConfigInvalid(name, found=_last_line(done.stderr), expected="an epoch; install it again (--install)")
    result: Document = json.loads((out / "result.json").read_text())
    for split in ("validation", "test"):
        labels_NT, p_NT = data.split(split).labels, np.load(out / f"{split}.npy")
        result[split] = [auc(np.asarray(labels_NT[:, t]), p_NT[:, t]) for t in range(labels_NT.shape[1])]
    return result


def _document(sizes: Sizes, codes: int, rounds: int, found: dict[str, list[Document]], skipped: list[str]) -> Document:
    figures = {name: _figures(sizes.rows, epochs) for name, epochs in found.items()}
    peers = {name: figures[name]["rows_per_cpu_s"] for name in figures if name not in OURS}
    ours, ours_bfloat16, with_up, with_up_bfloat16 = OURS
    fastest = max(peers, key=lambda name: peers[name]) if peers else None
    return asdict(sizes) | {
        "codes": codes,
        "rounds": rounds,
        "libraries": figures,
        "skipped": skipped,
        "fastest_peer": fastest,
        "against_fastest": None if fastest is None else _ratio(found[fastest], found[ours]),
        "bfloat16_against_fastest": None if fastest is None else _ratio(found[fastest], found[ours_bfloat16]),
        "cost_of_p_up": _ratio(found[with_up], found[ours])["cpu_s"] - 1,
        "cost_of_p_up_bfloat16": _ratio(found[with_up_bfloat16], found[ours_bfloat16])["cpu_s"] - 1,
    }


def _figures(rows: int, epochs: Sequence[Document]) -> Document:
    best = max(epochs, key=lambda epoch: float(np.mean(epoch["validation"])))
    cpu = [rows / epoch["cpu_s"] for epoch in epochs]
    return {
        "rows_per_cpu_s": median(cpu),
        "rows_per_cpu_s_range": [min(cpu), max(cpu)],
        "rows_per_wall_s": median(rows / epoch["wall_s"] for epoch in epochs),
        "learning_rate": best["learning_rate"],
        "auc": best["test"],
        "mean_auc": float(np.mean(best["test"])),
        "versions": best["versions"],
        "rounds": epochs,
    }


def _ratio(slower: Sequence[Document], faster: Sequence[Document]) -> Document:
    """Return how many times the rows per second, of CPU and wall time: medians of the rounds' ratios."""
    pairs = list(zip(slower, faster, strict=True))
    return {unit: median(a[unit] / b[unit] for a, b in pairs) for unit in ("cpu_s", "wall_s")}


@contextlib.contextmanager
def _held(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
