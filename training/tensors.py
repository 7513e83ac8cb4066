"""Files of named tensors (safetensors, never pickles), written piece by piece and read in full or by rows.

Layout: https://github.com/huggingface/safetensors#format. Its library writes from one block of bytes only, so a table
that does not fit in memory twice, or lies on several machines, needs a writer of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from bundle.files import new_file
from training.errors import RunInvalid

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Pieces:
    """A tensor that exists in pieces along its first axis: shape and type of the whole, and what yields the pieces."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]


def in_file_order(tensors: Mapping[str, Tensor | Pieces]) -> list[tuple[str, Tensor | Pieces]]:
    """Return tensors as a file holds them: wide types first, so that all lie at multiples of their width."""
    return sorted(tensors.items(), key=lambda named: (-named[1].dtype.itemsize, named[0]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Pieces], metadata: dict[str, str]) -> None:
    """Write tensors and a string-to-string header, whole or not at all."""
    header: dict[str, object] = {"__metadata__": metadata}
    ordered, at = in_file_order(tensors), 0
    for name, tensor in ordered:
        end = at + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            for piece in [tensor] if isinstance(tensor, Tensor) else tensor.pieces():
                file.write(piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header of a file.

    Raises:
        RunInvalid: the file is missing or does not read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load(path.read_bytes()), metadata
    except (OSError, SafetensorError) as exc:
        raise _unreadable(path, exc) from exc


def read_rows(path: Path, rows_of: Callable[[str], slice | None]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return as `read_tensors` does, of each tensor only the rows that `rows_of` its name asks for; None: all.

    Raises:
        RunInvalid: the file is missing or does not read.
    """
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, no mapping
                rows = rows_of(name)
                found[name] = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
            return found, file.metadata() or {}
    except (OSError, SafetensorError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> RunInvalid:
    return RunInvalid(str(path), found=str(exc), expected="a whole safetensors file")
