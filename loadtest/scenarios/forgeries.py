"""Bundles that must not serve: one way to spoil a good one per gate of the service, with the reason it must give.

Knows the layout of a bundle as docs/serving.md tells it: a manifest that lists every file with size and sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_NOISE = b"no such thing\n" * 100


@dataclass(frozen=True)
class Forgery:
    """A way to spoil a bundle.

    Attributes:
        name: what is wrong with it.
        reason: what `dlen_load_failures_total` must say.
        spoil: does it to a folder that holds a good bundle.
    """

    name: str
    reason: str
    spoil: Callable[[Path], None]


def _remove_signature(folder: Path) -> None:
    (folder / "manifest.sig").unlink()


def _sign_as_stranger(folder: Path) -> None:
    (folder / "manifest.sig").write_text(f"ed25519 {'0' * 16} {'A' * 86}==\n")


def _keep_signature(folder: Path) -> None:
    """Do nothing: the copy's signature is that of the version it was copied from."""


def _remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_manifest(folder: Path) -> None:
    _cut(folder / "manifest.json")


def _change_digit(folder: Path) -> None:
    """Change a number that nothing else contradicts."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tasks"][0]["base_rate"] /= 2
    file.write_text(json.dumps(manifest))


def _change_version(folder: Path) -> None:
    _change(folder, lambda manifest: manifest.update(schema_version=99))


def _change_inputs(folder: Path) -> None:
    def widen(manifest: dict[str, Any]) -> None:
        manifest["inputs"][0]["shape"][-1] += 1

    _change(folder, widen)


def _rename_tasks(folder: Path) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        for number, task in enumerate(manifest["tasks"]):
            task["name"] = f"another_task_{number}"

    _change(folder, rename)


def _remove_file(folder: Path) -> None:
    (folder / "golden.npz").unlink()


def _add_file(folder: Path) -> None:
    (folder / "more.py").write_bytes(_NOISE)


def _link_file(folder: Path) -> None:
    moved = (folder / "model.onnx").rename(folder.with_name(f".{folder.name}-model.onnx"))
    (folder / "model.onnx").symlink_to(moved)


def _leave_folder(folder: Path) -> None:
    def escape(manifest: dict[str, Any]) -> None:
        manifest["files"]["../stolen"] = manifest["files"]["model.onnx"]

    _change(folder, escape)


def _cut_largest(folder: Path) -> None:
    _cut(_largest(folder))


def _flip_byte(folder: Path) -> None:
    file = _largest(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _forge_schema(folder: Path) -> None:
    (folder / "features.json").write_text('{"features": [{"name": 7}]}')
    _list_anew(folder)


def _forge_golden(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(_NOISE)
    _list_anew(folder)


def _forge_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(_NOISE)
    _list_anew(folder)


def _forge_outputs(folder: Path) -> None:
    with np.load(folder / "golden.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["output.p"] = arrays["output.p"] + np.float32(0.01)
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **arrays)
    _list_anew(folder)


def _forge_weights(folder: Path) -> None:
    file = folder / "model.weights"
    file.write_bytes(bytes(file.stat().st_size))
    _list_anew(folder)


def _poison_weights(folder: Path) -> None:
    file = folder / "model.weights"
    file.write_bytes(b"\xff" * file.stat().st_size)
    _list_anew(folder)


SIGNATURE_FORGERIES = (
    Forgery("not signed", "SignatureMissing", _remove_signature),
    Forgery("signed by a stranger", "SignatureUntrusted", _sign_as_stranger),
    Forgery("an older version under a higher number", "SignatureInvalid", _keep_signature),
)
"""For a ranker that trusts keys; all others must be signed by one of them after they are spoiled."""
FORGERIES = (
    Forgery("no manifest", "ManifestMissing", _remove_manifest),
    Forgery("manifest cut off", "ManifestInvalid", _cut_manifest),
    Forgery("manifest of another format", "ManifestVersion", _change_version),
    Forgery("inputs that its schema does not ask for", "ManifestInvalid", _change_inputs),
    Forgery("a file missing", "FileMissing", _remove_file),
    Forgery("a file too many", "FileNotListed", _add_file),
    Forgery("a link out of the folder", "FileUnsafe", _link_file),
    Forgery("a listed path out of the folder", "FileUnsafe", _leave_folder),
    Forgery("weights cut off", "FileSize", _cut_largest),
    Forgery("one bit flipped", "FileDigest", _flip_byte),
    Forgery("one digit of the manifest changed", "FileDigest", _change_digit),
    Forgery("forged: no feature schema", "SchemaInvalid", _forge_schema),
    Forgery("forged: no golden request", "GoldenInvalid", _forge_golden),
    Forgery("forged: no graph", "TensorMismatch", _forge_graph),
    Forgery("forged: golden outputs 0.01 off", "GoldenMismatch", _forge_outputs),
    Forgery("tasks that the policies do not know", "ConfigInvalid", _rename_tasks),
)
"""In the order of the gates; `forged` ones have digests that fit."""
WEIGHT_FORGERIES = (
    Forgery("forged: weights all zero", "GoldenMismatch", _forge_weights),
    Forgery("forged: weights NaN", "GoldenMismatch", _poison_weights),
)
"""For bundles with weights beside the graph."""


def _change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")


def _list_anew(folder: Path) -> None:
    """Let the manifest list what lies in the folder, as a forger would."""

    def list_files(manifest: dict[str, Any]) -> None:
        for name, entry in manifest["files"].items():
            data = (folder / name).read_bytes()
            entry.update(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    _change(folder, list_files)


def _cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _largest(folder: Path) -> Path:
    return max(folder.glob("model.*"), key=lambda file: file.stat().st_size)
