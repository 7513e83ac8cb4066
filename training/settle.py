"""Settling: scale and offset of every logit of the latent head, fitted by the joint likelihood of held-back rows.

The level of P(UP) is what stochastic training settles last: u down and a_t up move along a ridge on which the
likelihood hardly rises, and the validation loss of P(t), by which weights are kept, does not see it at all. Over all
rows at once, a dozen or two numbers are found to the end of that ridge in seconds. They are linear in the last layer,
so that they go into the network's own weights. What temperatures are for single tasks, this is for a latent state.

Legend: B rows of a piece, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.batches import gather
from training.dataset import Split
from training.losses import joint
from training.models.heads import LatentHead, LatentLogits, Wide
from training.models.network import Network
from training.predict import ROWS_AT_ONCE
from training.run import MODEL_FILE, Run
from training.tensors import read_tensors, write_tensors

_SETTLED = "settled"
PRIOR_DEVIATION = 1.0
"""Of each offset, and of each scale's logarithm: a task with few positives stays where training left it."""


@dataclass(frozen=True)
class Settled:
    """What was found.

    Attributes:
        before, after: negative joint log-likelihood of a row.
        scales, offsets: of h, then of each task's f and g.
    """

    before: float
    after: float
    scales: tuple[float, ...]
    offsets: tuple[float, ...]

    def document(self) -> dict[str, Any]:
        """Return the figures for result.json."""
        return {"joint_loss": [self.before, self.after], "scales": self.scales, "offsets": self.offsets}


def settle_best(run: Run, validation: Split, tasks: list[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Settle a run's best weights and write them; return the figures. Once only, also if it is killed thereafter."""
    path = run.folder / MODEL_FILE
    tensors, metadata = read_tensors(path)
    if _SETTLED not in metadata:
        network = run.new_network()
        network.load_state_dict(tensors)
        found = settle(network, validation, tasks)
        say(f"settled: joint loss of a validation row {found.before:.5f} → {found.after:.5f}")
        metadata = {_SETTLED: json.dumps(found.document())}
        write_tensors(path, network.state_dict(), metadata)
    document: dict[str, Any] = json.loads(metadata[_SETTLED])
    return document


def settle(network: Network, rows: Split, tasks: list[int]) -> Settled:
    """Fit the latent head's logits to rows that it was not trained on, and change its last layer accordingly.

    h, f_t and g_t become scale·logit + offset, each with its own two numbers, such that the joint likelihood of the
    rows and a normal prior around (1, 0) is highest (L-BFGS on all rows at once, float64).

    Args:
        network: with a latent head; its last layer changes.
        rows: validation rows.
        tasks: label columns of the network's tasks.
    """
    head = network.head
    assert isinstance(head, LatentHead)
    pieces = _logits(network, rows, tasks)
    count = 1 + 2 * len(tasks)
    moved = torch.zeros(2, count, dtype=torch.float64, requires_grad=True)  # log scales, offsets
    search = torch.optim.LBFGS(
        [moved], max_iter=200, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-7
    )

    def loss() -> Tensor:
        search.zero_grad()
        found = _joint(pieces, moved) + (moved / PRIOR_DEVIATION).square().sum() / 2 / rows.rows
        found.backward()  # type: ignore[no-untyped-call]
        return found

    with torch.no_grad():
        before = float(_joint(pieces, moved))
    search.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        after = float(_joint(pieces, moved))
        _fold(head, network.wide, moved[0].exp().float(), moved[1].float())
    return Settled(before, after, tuple(moved[0].exp().tolist()), tuple(moved[1].tolist()))


Piece = tuple[LatentLogits, Tensor, Tensor | None]


def _logits(network: Network, rows: Split, tasks: list[int]) -> list[Piece]:
    """Return logits, labels and log seconds of all rows, in pieces, float64."""
    network.eval()
    pieces: list[Piece] = []
    with torch.no_grad():
        for start in range(0, rows.rows, ROWS_AT_ONCE):
            batch = gather(rows, slice(start, min(start + ROWS_AT_ONCE, rows.rows)), tasks)
            logits = network(batch.codes_BC, batch.values_BV)
            assert isinstance(logits, LatentLogits)
            pieces.append((_double(logits), batch.labels_BT.double(), batch.log_seconds_B))
    return pieces


def _double(logits: LatentLogits) -> LatentLogits:
    h_B, f_BT, g_BT, alpha_T = (part.double() for part in (logits.h_B, logits.f_BT, logits.g_BT, logits.alpha_T))
    return replace(logits, h_B=h_B, f_BT=f_BT, g_BT=g_BT, alpha_T=alpha_T)


def _joint(pieces: Sequence[Piece], moved: Tensor) -> Tensor:
    """Return the mean negative joint log-likelihood of all rows with scaled and shifted logits."""
    scales, offsets = moved[0].exp(), moved[1]
    tasks = (len(scales) - 1) // 2
    total, rows = torch.zeros((), dtype=torch.float64), 0
    for logits, labels_BT, log_seconds_B in pieces:
        shifted = replace(
            logits,
            h_B=logits.h_B * scales[0] + offsets[0],
            f_BT=logits.f_BT * scales[1 : 1 + tasks] + offsets[1 : 1 + tasks],
            g_BT=logits.g_BT * scales[1 + tasks :] + offsets[1 + tasks :],
        )
        total = total + joint(shifted, labels_BT, log_seconds_B) * len(labels_BT)
        rows += len(labels_BT)
    return total / rows


def _fold(head: LatentHead, wide: Wide | None, scales: Tensor, offsets: Tensor) -> None:
    """Let the head's last layer, and the wide one, give scaled and shifted logits."""
    tasks = (len(scales) - 1) // 2
    of_f, of_g = slice(1, 1 + tasks), slice(1 + tasks, None)
    head.latent_weight.mul_(scales[0])
    head.latent_bias.mul_(scales[0]).add_(offsets[0])
    head.weight.mul_(torch.stack([scales[of_f], scales[of_g]], dim=1)[:, None])  # [T, H, (f, g)]
    if wide is not None:
        wide.weight.mul_(torch.stack([scales[of_f], scales[of_g]])[:, None])  # [(f, g), K, T]
    head.bias_f.mul_(scales[of_f]).add_(offsets[of_f])
    head.bias_g.mul_(scales[of_g]).add_(offsets[of_g])
