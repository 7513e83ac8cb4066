"""golden.npz: inputs and the outputs expected of them, replayed before a version may serve."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.errors import GoldenInvalid, GoldenMismatch
from bundle.manifest import GOLDEN_FILE, Manifest, Tensor

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Golden:
    """One request's inputs and outputs, by tensor name; shapes as in the manifest."""

    inputs: Arrays
    outputs: Arrays


def golden_bytes(golden: Golden, **more: NDArray[np.generic]) -> bytes:
    """Return the content of a golden.npz; `more` are arrays beside inputs and outputs."""
    named = {f"input.{name}": array for name, array in golden.inputs.items()}
    named |= {f"output.{name}": array for name, array in golden.outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **named, **more)
    return buffer.getvalue()


def read_golden(folder: Path, manifest: Manifest, file: str = GOLDEN_FILE) -> Golden:
    """Return a golden request of a bundle, checked against the manifest's tensors.

    Raises:
        GoldenInvalid: the file does not read, lacks a tensor, or holds one of another dtype or shape.
    """
    path = folder / file
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as exc:
        raise GoldenInvalid(str(path), found=f"{exc}", expected="an npz archive of plain arrays") from exc
    inputs = {tensor.name: _checked(path, f"input.{tensor.name}", tensor, arrays) for tensor in manifest.inputs}
    outputs = {tensor.name: _checked(path, f"output.{tensor.name}", tensor, arrays) for tensor in manifest.outputs}
    lengths = {
        len(array)
        for tensors, named in ((manifest.inputs, inputs), (manifest.outputs, outputs))
        for tensor in tensors
        if tensor.shape[0] == "N"
        for array in (named[tensor.name],)
    }
    if len(lengths) != 1:
        raise GoldenInvalid(str(path), found=f"{sorted(lengths)} candidates", expected="one number of candidates")
    return Golden(inputs, outputs)


def check_replay(golden: Golden, outputs: Arrays, tolerance: float) -> None:
    """Check outputs replayed from the golden inputs.

    Raises:
        GoldenMismatch: an output is not finite or lies further than `tolerance` from the expected one.
    """
    for name, expected in golden.outputs.items():
        found = outputs[name]
        if found.shape != expected.shape:
            raise GoldenMismatch(f"golden output {name!r}", found=f"shape {found.shape}", expected=expected.shape)
        if not np.isfinite(found).all():
            raise GoldenMismatch(f"golden output {name!r}", found="NaN or infinity", expected="finite numbers")
        error = float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)), initial=0.0))
        if error > tolerance:
            raise GoldenMismatch(
                f"golden output {name!r}", found=f"off by {error:.3g}", expected=f"at most {tolerance:.3g}"
            )


def _checked(path: Path, key: str, tensor: Tensor, arrays: Arrays) -> NDArray[np.generic]:
    array = arrays.get(key)
    wanted = f"{tensor.dtype}{list(tensor.shape)}"
    if array is None:
        raise GoldenInvalid(f"{path}: {key}", found="no such array", expected=wanted)
    fits = array.dtype == np.dtype(tensor.dtype) and array.ndim == len(tensor.shape)
    fits = fits and all(want in ("N", got) for want, got in zip(tensor.shape, array.shape, strict=True))
    if not fits:
        raise GoldenInvalid(f"{path}: {key}", found=f"{array.dtype}{list(array.shape)}", expected=wanted)
    return array
