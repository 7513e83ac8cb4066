"""The processes of one run: one alone, or those that torchrun started, each with its share of every batch.

Ranks meet in sums and gathers only; no rank sends another its rows. Knows nothing of networks or files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import ConfigInvalid

DEVICES = ("auto", "cpu", "cuda")
_SUMMED: list[Tensor] = []
"""The tensor that was summed last, kept because gloo's threads let go of it a moment after the sum is there: where
Python has let go before, they need the interpreter to free it, and abort the process if that has begun to end."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: its number, from 0; the first one writes files.
        count: processes of the run.
        device: where this process computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this rank's part of `rows` rows: neighbours, as even as possible, maybe none."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, the same bits on each."""
        if self.count > 1:
            dist.all_reduce(tensor)
            _SUMMED[:] = [tensor]
        return tensor

    def gather(self, tensor: Tensor, rows: int) -> Tensor | None:
        """Return the ranks' shares of `rows` rows in order, on the first rank; None on the others.

        `tensor` lies on the CPU and holds this rank's share along its first axis.
        """
        if self.count == 1:
            return tensor
        most = -(-rows // self.count)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        shares = [torch.empty_like(padded) for _ in range(self.count)] if self.is_first else None
        dist.gather(padded, shares)
        if shares is None:
            return None
        sizes = [Ranks(rank, self.count).share(rows) for rank in range(self.count)]
        return torch.cat([share[: size.stop - size.start] for share, size in zip(shares, sizes, strict=True)])

    def random_states(self) -> Tensor | None:
        """Return the states of all ranks' generators [count, bytes] on the first rank; None on the others."""
        return self.gather(self._random_state().unsqueeze(0), self.count)

    def restore_random_state(self, states: Tensor) -> None:
        """Set this rank's generators to its state; a rank that the states do not hold keeps its own seed's."""
        if self.rank >= len(states):
            return
        state, size = states[self.rank], len(torch.get_rng_state())
        torch.set_rng_state(state[:size].clone())  # a view at an odd address makes torch crash
        if self.device.type == "cuda" and len(state) > size:
            torch.cuda.set_rng_state(state[size:].clone(), self.device)

    def _random_state(self) -> Tensor:
        state = torch.get_rng_state()
        return torch.cat([state, torch.cuda.get_rng_state(self.device)]) if self.device.type == "cuda" else state

    def wait(self) -> None:
        """Return once every rank is here."""
        if self.count > 1:
            self.sum(torch.zeros(1))


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Yield this process's place in the run: alone, or among those that torchrun started.

    Args:
        device: cpu, cuda (GPU number LOCAL_RANK), or auto: cuda where there is one.

    Raises:
        ConfigInvalid: cuda is asked for and there is none.
    """
    if device not in DEVICES:
        raise ConfigInvalid("device", found=device, expected=", ".join(DEVICES))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("device", found="cuda, and torch sees no GPU", expected="cpu or auto")
    place = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(device=place)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
