"""The training loop: batches, loss, Adam, validation, early stopping; resumes exactly where it was killed.

Under torchrun every rank runs this loop on its share of each batch. All decisions rest on sums over ranks, so all
ranks decide alike; the first one writes.
"""

from __future__ import annotations

import copy
import functools
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
from bundle.memory import keep_freed_memory
from training.batches import Batch, ShuffledBatches, gather
from training.config import TrainingConfig
from training.dataset import Prepared, Split
from training.errors import TrainingDiverged
from training.losses import total
from training.metrics import auc
from training.models.network import Network
from training.optimise import learning_rate, new_optimizers, optimizer_tensors, restore_optimizers
from training.parallel import data_parallel, sum_table_gradients
from training.ranks import Ranks
from training.run import (
    HISTORY_FILE,
    MODEL_FILE,
    RESULT_FILE,
    SAMPLE_FILE,
    STATE_FILE,
    Run,
    seed_everything,
)
from training.settle import settle_best
from training.sharded import own_rows, read_own, send_pieces, shard_tables, whole_tables
from training.start import carry_over
from training.tensors import write_tensors
from training.validate import measure

STATE_INTERVAL_S = 30.0
SAMPLE_ROWS = 20_000
STEPS_SHOWN = 10
"""Steps of which TensorBoard shows the mean loss."""
KEPT_BYTES = 1 << 30
"""Freed memory that a training process keeps at most for its next step."""
ALONE = Ranks()
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

    def __init__(
        self, run: Run, data: Prepared, say: Report, advance: Callable[[int, int], None], ranks: Ranks = ALONE
    ) -> None:
        """Set up at initialisation, or where the run's saved state stands.

        Args:
            run: the run's folder and description.
            data: prepared data of the run's fingerprint.
            say: takes one line of news per validation.
            advance: takes (steps done, steps at most) after each step.
            ranks: this process among those of the run.
        """
        self.run, self.say, self.advance, self.ranks = run, say, advance, ranks
        self.config: TrainingConfig = run.description.config.training
        names = [task.name for task in data.tasks]
        self.tasks = [names.index(name) for name in run.description.task_names]
        self.validation: Split = data.split("validation")
        train = data.split("train")
        self.batches = ShuffledBatches(
            train, self.tasks, self.config.batch_size, self.config.seed, ranks, self.config.rows_share
        )
        self.steps_at_most = self.config.epochs * self.batches.count
        seed_everything(self.config.seed)
        is_sharded = self.config.sharded_tables and ranks.count > 1
        own = functools.partial(own_rows, ranks=ranks) if is_sharded else None
        self.network: Network = run.new_network(own).to(ranks.device)
        is_begun = (run.folder / STATE_FILE).exists()
        if self.config.start_from and not is_begun:
            for line in carry_over(self.network, run, self.config.start_from, own).lines(self.config.start_from):
                say(line)
        self.network.inputs.sparse_gradients = self.config.sparse_tables
        self.kept: Network = copy.deepcopy(self.network) if self.config.average else self.network
        if is_sharded:
            for network in {id(network): network for network in (self.network, self.kept)}.values():
                shard_tables(network, ranks)
        self.optimizers = new_optimizers(self.network, self.config)
        self.progress = Progress()
        weights = [self.config.task_weights.get(name, 1.0) for name in run.description.task_names]
        self.task_weights_T = torch.tensor(weights, device=ranks.device) if self.config.task_weights else None
        if ranks.rank:  # weights start alike, dropout differs
            seed_everything(self.config.seed, ranks.rank)
        if is_begun:
            self._restore()
        self._averaged = _floats(self.network)
        self._averages = _floats(self.kept)
        self._forward = self.network if ranks.count == 1 else data_parallel(self.network)
        self._board: SummaryWriter | None = None
        self._losses: list[float] = []
        self._saved_at = time.monotonic()
        self._save_is_due = False

    def fit(self) -> dict[str, Any]:
        """Train to the end and return the run's result; may be called on a run killed at any point."""
        keep_freed_memory(KEPT_BYTES)
        if self.ranks.is_first:
            self._board = SummaryWriter(str(self.run.folder / "tensorboard"), purge_step=self.progress.step)
        try:
            while self.progress.epoch < self.config.epochs and not self._out_of_patience():
                for batch in self.batches.epoch(self.progress.epoch, self.progress.batch):
                    self._note(self.step(batch))
                    if self._validation_is_due():
                        self._validate()
                        self._save()
                        if self._out_of_patience():
                            break
                    elif self._save_is_due:
                        self._save()
                else:
                    self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
        finally:
            if self._board is not None:
                self._board.close()
        if self.ranks.is_first:
            self._finish()
        self.ranks.wait()
        return self.run.result()

    def step(self, batch: Batch) -> float:
        """Take one optimiser step; return the loss of the whole batch, all ranks' rows."""
        config = self.config
        rate = learning_rate(config, self.progress.step, self.steps_at_most)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        if not self.network.training:
            self.network.train()
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = self._forward(batch.codes_BC, batch.values_BV)
        loss = total(
            config.loss,
            logits,
            batch.labels_BT,
            task_weights_T=self.task_weights_T,
            joint_share=config.joint_share,
            log_seconds_B=batch.log_seconds_B,
        )
        if self.ranks.count > 1:
            loss = loss * batch.weight
        loss.backward()  # type: ignore[no-untyped-call]
        value = self._agreed(loss.detach())
        self._check_finite("loss", value, rate)
        if self.ranks.count > 1 and config.sparse_tables:
            sum_table_gradients(self.network, self.ranks)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.batch += 1
        self._average()
        self.advance(self.progress.step, self.steps_at_most)
        return value

    def _agreed(self, loss: Tensor) -> float:
        """Return the mean of the ranks' weighted losses, and note whether the first rank's clock asks for a save."""
        due = time.monotonic() - self._saved_at > STATE_INTERVAL_S
        if self.ranks.count == 1:
            self._save_is_due = due
            return float(loss)
        both = torch.stack([loss.double(), loss.new_tensor(due and self.ranks.is_first, dtype=torch.float64)])
        value, asked = self.ranks.sum(both).tolist()
        self._save_is_due = asked > 0
        return float(value) / self.ranks.count

    def _check_finite(self, thing: str, value: float, rate: float) -> None:
        if not math.isfinite(value):
            place = f"{self.run.folder}: {thing} at step {self.progress.step}, learning rate {rate:.3g}"
            raise TrainingDiverged(place, found=value, expected="a finite number")

    def _average(self) -> None:
        """Move the averaged weights towards the current ones; early on faster, so that none of the start stays."""
        if not self.config.average:
            return
        decay = min(self.config.average, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._averaged, 1 - decay)

    def _validation_is_due(self) -> bool:
        points = {
            round((k + 1) * self.batches.count / self.config.evaluations_per_epoch)
            for k in range(self.config.evaluations_per_epoch)
        }
        return self.progress.batch in points

    def _validate(self) -> None:
        """Measure the validation loss (the same for every model and training loss) and keep the best weights."""
        loss_T, p = measure(self.kept, self.validation, self.tasks, self.ranks)
        loss = float(loss_T.sum())
        rate = learning_rate(self.config, self.progress.step - 1, self.steps_at_most)
        self._check_finite("validation loss", loss, rate)
        aucs: dict[str, float | None] = {}
        if p is not None:
            labels = np.asarray(self.validation.labels)[:, self.tasks]
            aucs = {name: auc(labels[:, t], p[:, t].numpy()) for t, name in enumerate(self.run.description.task_names)}
        record: dict[str, Any] = {
            "step": self.progress.step,
            "epoch": self.progress.epoch + self.progress.batch / self.batches.count,
        }
        record |= {"loss": loss, "auc": aucs}
        self.progress.validations.append(record)
        self._show("validation/loss", loss)
        for name, value in aucs.items():
            if value is not None:
                self._show(f"validation/auc_{name}", value)
        shown = " ".join(f"{name} {value:.4f}" for name, value in aucs.items() if value is not None)
        better = loss < self.progress.best_loss
        self.say(f"epoch {record['epoch']:.2f}  validation loss {loss:.5f}  AUC {shown}{'  *' if better else ''}")
        if better:
            self.progress.best_loss, self.progress.best_validation = loss, len(self.progress.validations) - 1
            self._write(MODEL_FILE, self.kept.state_dict(), {})

    def _note(self, loss: float) -> None:
        """Keep a step's loss; show the mean of every so many, since one by one they would cost as much as Adam."""
        self._losses.append(loss)
        if len(self._losses) == STEPS_SHOWN:
            self._show("train/loss", sum(self._losses) / STEPS_SHOWN)
            self._losses.clear()

    def _show(self, name: str, value: float) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, self.progress.step)

    def _out_of_patience(self) -> bool:
        since = len(self.progress.validations) - 1 - self.progress.best_validation
        return bool(self.progress.validations) and since >= self.config.patience

    def _finish(self) -> None:
        sample = gather(self.validation, _sample_rows(self.validation.rows), self.tasks)
        tensors = {"codes": sample.codes_BC, "values": sample.values_BV, "labels": sample.labels_BT.to(torch.uint8)}
        write_tensors(self.run.folder / SAMPLE_FILE, tensors, {})
        best = self.progress.validations[self.progress.best_validation]
        result = {"best": best, "steps": self.progress.step, "validations": len(self.progress.validations)}
        if self.config.settle:
            result["settled"] = settle_best(self.run, self.validation, self.tasks, self.say)
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.validations)
        write_file(self.run.folder / HISTORY_FILE, lines.encode())
        write_file(self.run.folder / RESULT_FILE, json.dumps(result, indent=1).encode())
        (self.run.folder / STATE_FILE).unlink(missing_ok=True)

    def _save(self) -> None:
        """Write everything that decides the rest of the training, unless a weight is no longer finite."""
        self._saved_at = time.monotonic()
        random = self.ranks.random_states()
        weights = self.network.state_dict()
        broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
        if broken:
            rate = learning_rate(self.config, self.progress.step - 1, self.steps_at_most)
            self._check_finite(f"weights {broken[0]}", math.nan, rate)
        tensors: dict[str, Tensor] = {f"network.{k}": v for k, v in weights.items()}
        if self.config.average:
            tensors |= {f"averaged.{k}": v for k, v in self.kept.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizers).items()}
        if random is not None:
            tensors["random"] = random
        self._write(STATE_FILE, tensors, {"progress": json.dumps(asdict(self.progress))})

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a file of the run: the first rank does, with the rows of tables that others send."""
        whole = whole_tables(tensors, self.network, self.ranks)
        if self.ranks.is_first:
            write_tensors(self.run.folder / name, whole, metadata)
        else:
            send_pieces(whole)

    def _restore(self) -> None:
        tensors, metadata = read_own(self.run.folder / STATE_FILE, self.network, self.ranks)
        self.progress = Progress(**json.loads(metadata["progress"]))
        self.network.load_state_dict(_below(tensors, "network."))
        if self.config.average:
            self.kept.load_state_dict(_below(tensors, "averaged."))
        restore_optimizers(self.optimizers, _below(tensors, "optimizer."))
        self.ranks.restore_random_state(tensors["random"])
        self.say(f"resumed at step {self.progress.step} of at most {self.steps_at_most}")


def _floats(network: Network) -> list[Tensor]:
    """Return the weights and buffers of a network, in one order for all of its copies; they change with it."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


def _sample_rows(rows: int) -> NDArray[np.int64]:
    """Return up to SAMPLE_ROWS row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE_ROWS)).astype(np.int64))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
