"""One epoch of ours, in a process of its own, as a peer's script runs: python -m training.peer_round DATA SETTINGS OUT.

The clock runs from before the first batch to after the last step; the validation that ends the epoch and what comes
before `fit` are left out, as for the peers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.config import RunConfig
from training.dataset import read_prepared
from training.describe import describe_run
from training.predict import predict
from training.run import create_run
from training.train import Trainer


def train_once(data_folder: Path, settings: dict[str, Any], out: Path) -> None:
    """Train one epoch; write times, versions and the predictions of validation and test rows into `out`."""
    data = read_prepared(data_folder)
    config = _config(settings)
    ended: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as made:
        run = create_run(Path(made) / "run", describe_run(config, data), data.schema)
        trainer = Trainer(run, data, lambda news: None, lambda done, total: ended.append(_now()))
        cpu_s, wall_s = _now()
        trainer.fit()
        network = run.trained_network()
    out.mkdir(parents=True, exist_ok=True)
    for split in ("validation", "test"):
        np.save(out / f"{split}.npy", predict(network, data.split(split)).p)
    document = {"cpu_s": ended[-1][0] - cpu_s, "wall_s": ended[-1][1] - wall_s}
    (out / "result.json").write_text(json.dumps(document | {"versions": {"torch": version("torch")}}))


def _config(settings: dict[str, Any]) -> RunConfig:
    hidden = tuple(settings["expert_hidden"])
    model = {"name": settings["model"], "experts": settings["experts"], "expert_hidden": hidden}
    model |= {"latent_hidden": hidden, "tower_hidden": tuple(settings["tower_hidden"])}
    training = {name: settings[name] for name in ("learning_rate", "batch_size", "seed")}
    training |= {"precision": settings.get("precision", "float32"), "epochs": 1, "evaluations_per_epoch": 1}
    return RunConfig.model_validate({"model": model, "training": training})


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_once(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))
