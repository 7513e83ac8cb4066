"""What every peer's script shares: the made-up rows as columns, a clock, the files that `dlen` reads back.

Run by a peer's own Python, which has neither `dlen` nor what it needs: python SCRIPT DATA SETTINGS OUT.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

TASKS = 5


def arguments() -> tuple[Path, dict, Path]:
    """Return the prepared folder, the settings, and the folder for results; one thread from here on."""
    torch.set_num_threads(1)
    settings = json.loads(sys.argv[2])
    torch.manual_seed(settings["seed"])
    np.random.seed(settings["seed"])
    return Path(sys.argv[1]), settings, Path(sys.argv[3])


def columns(data: Path, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the features of a split by name, whole numbers [N] each, and its labels [N, T]."""
    codes_NC = np.load(data / split / "codes.npy")
    named = {f"feature{c}": np.ascontiguousarray(codes_NC[:, c]) for c in range(codes_NC.shape[1])}
    return named, np.load(data / split / "labels.npy")


class Clock:
    """CPU time of this process, all threads and ended children, and wall time, since it was made."""

    def __init__(self) -> None:
        self._begun = self._now()

    def seconds(self) -> dict[str, float]:
        """Return the time passed."""
        return {name: now - self._begun[name] for name, now in self._now().items()}

    @staticmethod
    def _now() -> dict[str, float]:
        return {"cpu_s": sum(os.times()[:4]), "wall_s": time.perf_counter()}


def write(out: Path, package: str, seconds: dict[str, float], predictions: dict[str, np.ndarray]) -> None:
    """Write times, versions and the predictions [N, T] of each split."""
    out.mkdir(parents=True, exist_ok=True)
    for split, p_NT in predictions.items():
        np.save(out / f"{split}.npy", np.asarray(p_NT, dtype=np.float32).reshape(-1, TASKS))
    versions = {name: importlib.metadata.version(name) for name in (package, "torch")}
    (out / "result.json").write_text(json.dumps(seconds | {"versions": versions}))
