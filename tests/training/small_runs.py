"""Trainers of small networks, quiet, on prepared rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.config import read_config
from training.dataset import Prepared
from training.describe import describe_run
from training.run import create_run
from training.train import Trainer

SMALL: dict[str, Any] = {
    "model.expert_hidden": (16, 8),
    "model.latent_hidden": (16, 8),
    "model.experts": 2,
    "training.batch_size": 512,
}


def trainer_of(
    folder: Path,
    data: Prepared,
    model: str,
    overrides: Mapping[str, Any],
    say: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> Trainer:
    """Return the trainer of the run in a folder, new or begun there before."""
    run = create_run(folder, describe_run(read_config(None, model, overrides), data), data.schema)
    return Trainer(run, data, say, advance)
