"""The training loop: batches, loss, Adam, validation, early stopping; resumes exactly where it was killed."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bundle.files import write_file
from training.batches import Batch, ShuffledBatches, gather
from training.config import TrainingConfig
from training.dataset import Prepared, Split
from training.errors import TrainingDiverged
from training.losses import cross_entropy, total
from training.metrics import auc
from training.models.network import Network
from training.predict import ROWS_AT_ONCE
from training.run import (
    HISTORY_FILE,
    MODEL_FILE,
    RESULT_FILE,
    SAMPLE_FILE,
    STATE_FILE,
    Run,
    read_tensors,
    seed_everything,
    write_tensors,
)

STATE_INTERVAL_S = 30.0
SAMPLE_ROWS = 20_000
Report = Callable[[str], None]


@dataclass
class Progress:
    """Where training stands; saved with the state.

    Attributes:
        epoch, batch: the next batch to train on.
        step: steps done.
        best_loss: lowest validation loss so far.
        best_validation: its number.
        validations: one record per validation.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_validation: int = -1
    validations: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run being trained.

    Attributes:
        network: takes the optimiser's steps.
        kept: is validated and written: the network itself, or the moving average of its weights.
    """

    def __init__(self, run: Run, data: Prepared, say: Report, advance: Callable[[int, int], None]) -> None:
        """Set up at initialisation, or where the run's saved state stands.

        Args:
            run: the run's folder and description.
            data: prepared data of the run's fingerprint.
            say: takes one line of news per validation.
            advance: takes (steps done, steps at most) after each step.
        """
        self.run, self.say, self.advance = run, say, advance
        self.config: TrainingConfig = run.description.config.training
        names = [task.name for task in data.tasks]
        self.tasks = [names.index(name) for name in run.description.task_names]
        self.validation: Split = data.split("validation")
        self.batches = ShuffledBatches(data.split("train"), self.tasks, self.config.batch_size, self.config.seed)
        self.steps_at_most = self.config.epochs * self.batches.count
        seed_everything(self.config.seed)
        self.network: Network = run.new_network()
        self.network.inputs.sparse_gradients = self.config.sparse_tables
        self.optimizers = _optimizers(self.network, self.config)
        self.kept: Network = copy.deepcopy(self.network) if self.config.average else self.network
        self.progress = Progress()
        weights = [self.config.task_weights.get(name, 1.0) for name in run.description.task_names]
        self.task_weights_T = torch.tensor(weights) if self.config.task_weights else None
        if (run.folder / STATE_FILE).exists():
            self._restore()

    def fit(self) -> dict[str, Any]:
        """Train to the end and return the run's result; may be called on a run killed at any point."""
        board = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.progress.step)
        saved_at = time.monotonic()
        try:
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                for batch in self.batches.epoch(self.progress.epoch, self.progress.batch):
                    loss = self.step(batch)
                    board.add_scalar("train/loss", loss, self.progress.step)
                    if self._validation_is_due():
                        self._validate(board)
                        self._save()
                        saved_at = time.monotonic()
                        if self._out_of_patience():
                            break
                    elif time.monotonic() - saved_at > STATE_INTERVAL_S:
                        self._save()
                        saved_at = time.monotonic()
                else:
                    self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
        finally:
            board.close()
        return self._finish()

    def step(self, batch: Batch) -> float:
        """Take one optimiser step; return the batch's loss."""
        config = self.config
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(config, self.progress.step, self.steps_at_most)
            optimizer.zero_grad(set_to_none=True)
        self.network.train()
        logits = self.network(batch.codes_BC, batch.values_BV)
        loss = total(
            config.loss,
            logits,
            batch.labels_BT,
            task_weights_T=self.task_weights_T,
            joint_share=config.joint_share,
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{self.run.folder}: loss at step {self.progress.step}", found=value, expected="a finite number"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.batch += 1
        self._average()
        self.advance(self.progress.step, self.steps_at_most)
        return value

    def _average(self) -> None:
        """Move the averaged weights towards the current ones; early on faster, so that none of the start stays."""
        if not self.config.average:
            return
        decay = min(self.config.average, (1 + self.progress.step) / (10 + self.progress.step))
        current = {name: t for name, t in self.network.state_dict().items() if t.is_floating_point()}
        kept = self.kept.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_([kept[name] for name in current], list(current.values()), 1 - decay)

    def _validation_is_due(self) -> bool:
        points = {
            round((k + 1) * self.batches.count / self.config.evaluations_per_epoch)
            for k in range(self.config.evaluations_per_epoch)
        }
        return self.progress.batch in points

    def _validate(self, board: SummaryWriter) -> None:
        """Measure the validation loss (the same for every model and training loss) and keep the best weights."""
        loss_T, p = measure(self.kept, self.validation, self.tasks)
        loss = float(loss_T.sum())
        labels = np.asarray(self.validation.labels)[:, self.tasks]
        aucs = {name: auc(labels[:, t], p[:, t]) for t, name in enumerate(self.run.description.task_names)}
        record: dict[str, Any] = {
            "step": self.progress.step,
            "epoch": self.progress.epoch + self.progress.batch / self.batches.count,
        }
        record |= {"loss": loss, "auc": aucs}
        self.progress.validations.append(record)
        board.add_scalar("validation/loss", loss, self.progress.step)
        for name, value in aucs.items():
            if value is not None:
                board.add_scalar(f"validation/auc_{name}", value, self.progress.step)
        shown = " ".join(f"{name} {value:.4f}" for name, value in aucs.items() if value is not None)
        better = loss < self.progress.best_loss
        self.say(f"epoch {record['epoch']:.2f}  validation loss {loss:.5f}  AUC {shown}{'  *' if better else ''}")
        if better:
            self.progress.best_loss, self.progress.best_validation = loss, len(self.progress.validations) - 1
            write_tensors(self.run.folder / MODEL_FILE, self.kept.state_dict(), {})

    def _out_of_patience(self) -> bool:
        since = len(self.progress.validations) - 1 - self.progress.best_validation
        return bool(self.progress.validations) and since >= self.config.patience

    def _finish(self) -> dict[str, Any]:
        sample = gather(self.validation, _sample_rows(self.validation.rows), self.tasks)
        tensors = {"codes": sample.codes_BC, "values": sample.values_BV, "labels": sample.labels_BT.to(torch.uint8)}
        write_tensors(self.run.folder / SAMPLE_FILE, tensors, {})
        best = self.progress.validations[self.progress.best_validation]
        result = {"best": best, "steps": self.progress.step, "validations": len(self.progress.validations)}
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.validations)
        write_file(self.run.folder / HISTORY_FILE, lines.encode())
        write_file(self.run.folder / RESULT_FILE, json.dumps(result, indent=1).encode())
        (self.run.folder / STATE_FILE).unlink(missing_ok=True)
        return result

    def _save(self) -> None:
        """Write everything that decides the rest of the training."""
        tensors: dict[str, Tensor] = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.config.average:
            tensors |= {f"averaged.{k}": v for k, v in self.kept.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(v) for key, v in state.items()}
        tensors["random"] = torch.get_rng_state()
        write_tensors(self.run.folder / STATE_FILE, tensors, {"progress": json.dumps(asdict(self.progress))})

    def _restore(self) -> None:
        tensors, metadata = read_tensors(self.run.folder / STATE_FILE)
        self.progress = Progress(**json.loads(metadata["progress"]))
        self.network.load_state_dict(_below(tensors, "network."))
        if self.config.average:
            self.kept.load_state_dict(_below(tensors, "averaged."))
        for number, optimizer in enumerate(self.optimizers):
            _restore_optimizer(optimizer, _below(tensors, f"optimizer.{number}."))
        torch.set_rng_state(tensors["random"])
        self.say(f"resumed at step {self.progress.step} of at most {self.steps_at_most}")


def measure(network: Network, split: Split, tasks: list[int]) -> tuple[Tensor, NDArray[np.float32]]:
    """Return each task's mean cross-entropy of P(t) over a split [T], and P(t) of its rows [rows, T]."""
    network.eval()
    sums, pieces = torch.zeros(len(tasks), dtype=torch.float64), []
    with torch.inference_mode():
        for start in range(0, split.rows, ROWS_AT_ONCE):
            batch = gather(split, slice(start, start + ROWS_AT_ONCE), tasks)
            logits = network(batch.codes_BC, batch.values_BV)
            sums += cross_entropy(logits, batch.labels_BT).double() * len(batch.labels_BT)
            pieces.append(logits.probabilities().p_BT.numpy())
    return sums / split.rows, np.concatenate(pieces)


def _sample_rows(rows: int) -> NDArray[np.int64]:
    """Return up to SAMPLE_ROWS row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE_ROWS)).astype(np.int64))


def _optimizers(network: Network, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return Adam for everything, or, with sparse tables, one for the tables' touched rows and one for the rest."""
    tables = list(network.inputs.tables.parameters())
    dense = [p for name, p in network.named_parameters() if not name.startswith("inputs.tables")]
    rest = {"params": dense, "weight_decay": config.weight_decay}
    if config.sparse_tables and tables:
        sparse = torch.optim.SparseAdam(tables, lr=config.learning_rate)
        return [sparse, torch.optim.AdamW([rest], lr=config.learning_rate, fused=True)]
    groups = [{"params": tables, "weight_decay": config.embedding_decay}, rest]
    return [torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)]


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    counts_in_ints = isinstance(optimizer, torch.optim.SparseAdam)  # as a tensor its steps would be rounded to float32
    states: dict[int, dict[str, Tensor | int]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = int(value) if counts_in_ints and name == "step" else value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _learning_rate(config: TrainingConfig, step: int, steps_at_most: int) -> float:
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps_at_most - config.warmup_steps)
    return config.learning_rate * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
