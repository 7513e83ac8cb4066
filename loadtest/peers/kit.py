"""The kit of a comparison (`dlen benchmark kit`): models of one network, and the same requests for everybody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import KitInvalid

KIT_FILE = "kit.json"


@dataclass(frozen=True)
class Kit:
    """A kit on disk.

    Attributes:
        candidates: candidates of a request, rising.
        tasks: in the order of every task axis.
        codes: columns of an encoded row.
    """

    folder: Path
    candidates: tuple[int, ...]
    tasks: tuple[str, ...]
    codes: int

    def bodies(self, kind: str, count: int) -> list[bytes]:
        """Return this service's requests: `rows`, `columns`, `ids` (JSON) or `arrow`."""
        if kind == "arrow":
            return [path.read_bytes() for path in sorted(self.folder.glob(f"arrow-{count}-*.arrow"))]
        return (self.folder / f"{kind}-{count}.jsonl").read_bytes().splitlines()

    def inputs(self, count: int) -> NDArray[np.int32]:
        """Return the same requests encoded, int32 [requests, N, C]."""
        codes: NDArray[np.int32] = np.load(self.folder / f"inputs-{count}.npz")["codes"]
        return codes

    def expected(self, count: int) -> NDArray[np.float32]:
        """Return P(task) of the first request, float32 [N, T], as the plain export gives it."""
        p_NT: NDArray[np.float32] = np.load(self.folder / f"inputs-{count}.npz")["p"]
        return p_NT

    def models(self, name: str) -> Path:
        """Return the models folder of that name, which a kit need not have."""
        return self.folder / name


def read_kit(folder: Path) -> Kit:
    """Return the kit in a folder.

    Raises:
        KitInvalid: there is none.
    """
    path = folder / KIT_FILE
    try:
        document = json.loads(path.read_bytes())
        candidates, tasks = tuple(sorted(document["candidates"])), tuple(document["tasks"])
        return Kit(folder.absolute(), candidates, tasks, int(document["codes"]))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise KitInvalid(str(path), found=f"{exc}", expected="a kit (dlen benchmark kit --out DIR)") from exc
