"""manifest.json: what a bundle holds, which tensors its graph takes and gives, and how it was made.

A bundle is a folder `models/<name>/<version>/` with `manifest.json`, `model.onnx` (and external weights),
`features.json` and `golden.npz`; of int8 also `model.fused.onnx`, the same in operators of our own
(`bundle.operators`). Task order is named here, once; every array's task axis follows it. The manifest holds
the digests of all other files; its own lies beside it in `manifest.sha256`, as `sha256sum --check` takes it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.errors import (
    FileDigest,
    FileMissing,
    FileNotListed,
    FileSize,
    FileUnsafe,
    ManifestInvalid,
    ManifestMissing,
    ManifestVersion,
)
from bundle.files import sha256_of
from bundle.reference import BINS

MANIFEST_VERSION = 1
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "manifest.sha256"
SIGNATURE_FILE = "manifest.sig"
MODEL_FILE = "model.onnx"
FEATURES_FILE = "features.json"
GOLDEN_FILE = "golden.npz"
ROWS_MODEL_FILE = "rank_rows.onnx"
ITEM_ENCODER_FILE = "item_rows.onnx"
FUSED_MODEL_FILE = "model.fused.onnx"
FUSED_ROWS_MODEL_FILE = "rank_rows.fused.onnx"
ITEMS_GOLDEN_FILE = "items.golden.npz"
_BESIDE = frozenset({MANIFEST_FILE, DIGEST_FILE, SIGNATURE_FILE})
MANIFEST_BYTES_LIMIT = 16 << 20

REQUEST_CODES = "request_codes"
REQUEST_VALUES = "request_values"
ITEM_CODES = "item_codes"
ITEM_VALUES = "item_values"
ITEM_ROWS = "item_rows"
P = "p"
P_JOINT = "p_joint"
P_UP = "p_up"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tensor(_Model):
    """One input or output of the graph; "N" in a shape is the number of candidates."""

    name: str
    dtype: Literal["int32", "float32", "uint8"]
    shape: tuple[int | Literal["N"], ...]


class FileEntry(_Model):
    """Size and digest of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Calibration(_Model):
    """Per-task calibration fitted on validation rows: p' = sigmoid(logit(p) / temperature + offset)."""

    temperature: float = Field(gt=0)
    offset: float
    pcoc_before: float | None = None
    pcoc_after: float | None = None


class Task(_Model):
    """One predicted behaviour.

    Attributes:
        name: as in the fusion policy and every answer.
        kind: whether the behaviour is wanted (`positive`) or a complaint (`negative`).
        base_rate: share of positive labels in the training rows.
        alpha: upper bound of P(task|¬UP) (Eq. 7); None for a model without the latent state.
        calibration: fitted on validation, applied by a fusion policy that asks for it.
        reference_shares: share of validation rows' P(task) in each bin of `bundle.reference`, for drift.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", max_length=64)
    kind: Literal["positive", "negative"] = "positive"
    base_rate: float = Field(ge=0, le=1)
    alpha: float | None = Field(default=None, gt=0, lt=1)
    calibration: Calibration | None = None
    reference_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        default=None, min_length=len(BINS), max_length=len(BINS)
    )


class Parity(_Model):
    """How far the graph's outputs lie from what they must be, on real rows; also the tolerance of golden replay.

    A float32 graph must give the trained network's outputs; an int8 graph those of its own integer arithmetic,
    whose distance from the trained network is the matter of `PrecisionGate`.
    """

    tolerance: float = Field(gt=0)
    max_abs_error: float = Field(ge=0)
    rows: int = Field(ge=1)


class ScoreChange(_Model):
    """What a lower precision changes in one score: P(task), or P(UP) (judged by whether any task happened)."""

    auc_before: float | None
    auc_after: float | None
    mean_abs_change: float = Field(ge=0)
    max_abs_change: float = Field(ge=0)
    top10_overlap: float = Field(ge=0, le=1)


class PrecisionGate(_Model):
    """What a lower precision changes on real rows, by task name and `p_up`.

    Attributes:
        rows: validation rows behind AUC and changes.
        requests, candidates: ranked requests behind the top-10 overlap, and candidates in each.
        scores: figures by score.
    """

    rows: int = Field(ge=1)
    requests: int = Field(ge=1)
    candidates: int = Field(ge=1)
    scores: dict[str, ScoreChange]


class ItemTableEntry(_Model):
    """The item table that lies beside the graph; see `bundle.items`.

    Attributes:
        rows: what an item's row holds: its embeddings side by side, or its part of the first layers.
        count: items in the table.
        row: the rows as rank_rows.onnx takes them.
        given: share of items that have a value, by feature.
        parity: how far the scores of rows lie from those of the trained network, in int8 from model.onnx's.
        precision_gate: of an int8 bundle, what ranking by rows changes against the trained network.
        source: the file or folder that the table was made of.
    """

    rows: Literal["packed", "layer1"]
    count: int = Field(ge=1)
    row: Tensor
    given: dict[str, float]
    parity: Parity
    precision_gate: PrecisionGate | None = None
    source: str = ""


class Provenance(_Model):
    """Where the model comes from."""

    data_fingerprint: str
    git_commit: str
    created_at: str
    loss: str
    seed: int


class Manifest(_Model):
    """The whole of manifest.json.

    Attributes:
        fused: version of the operators that the fused graphs are of; None where there are none.
    """

    schema_version: Literal[1] = 1
    architecture: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    opset: int = Field(ge=13)
    precision: Literal["fp32", "int8"] = "fp32"
    parity: Parity
    precision_gate: PrecisionGate | None = None
    fused: int | None = Field(default=None, ge=1, exclude_if=lambda fused: fused is None)
    items: ItemTableEntry | None = None
    files: dict[str, FileEntry]
    offline_metrics: dict[str, object] = {}
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("task names must be unique")
        for tensors in (self.inputs, self.outputs):
            if len({tensor.name for tensor in tensors}) != len(tensors):
                raise ValueError("tensor names must be unique")
        wanted = {P, P_JOINT, P_UP} if self.has_latent else {P}
        if (found := {tensor.name for tensor in self.outputs}) != wanted:
            raise ValueError(f"outputs {sorted(found)} must be {sorted(wanted)}")
        if any((task.alpha is not None) != self.has_latent for task in self.tasks):
            raise ValueError("alpha must be given for every task of a model with p_up, and for no other")
        if (self.precision_gate is not None) != (self.precision == "int8"):
            raise ValueError("precision_gate must be given for int8, and for no other precision")
        needed = [MODEL_FILE, FEATURES_FILE, GOLDEN_FILE]
        if self.items is not None:
            needed += [ROWS_MODEL_FILE, ITEM_ENCODER_FILE, ITEMS_GOLDEN_FILE]
            if (self.items.precision_gate is not None) != (self.precision == "int8"):
                raise ValueError("items.precision_gate must be given for int8, and for no other precision")
        if self.fused is not None:
            needed += [FUSED_MODEL_FILE] if self.items is None else [FUSED_MODEL_FILE, FUSED_ROWS_MODEL_FILE]
        for file in needed:
            if file not in self.files:
                raise ValueError(f"files must list {file}")
        return self

    @property
    def has_latent(self) -> bool:
        """Whether the model gives P(UP)."""
        return any(tensor.name == P_UP for tensor in self.outputs)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Task names in the order of every task axis."""
        return tuple(task.name for task in self.tasks)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a bundle folder; its files are not looked at.

    Raises:
        ManifestMissing, ManifestVersion, ManifestInvalid: see `bundle.errors`.
    """
    return parse_manifest(folder, manifest_bytes(folder))


def manifest_bytes(folder: Path) -> bytes:
    """Return manifest.json of a bundle folder as it is.

    Raises:
        ManifestMissing, ManifestInvalid: it cannot be read; it is too large, or no plain file.
    """
    path = folder / MANIFEST_FILE
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for whoever writes to it
            raise ManifestInvalid(str(path), found="no plain file", expected="a plain file")
        if found.st_size > MANIFEST_BYTES_LIMIT:
            raise ManifestInvalid(str(path), found=f"{found.st_size} bytes", expected=f"at most {MANIFEST_BYTES_LIMIT}")
        return path.read_bytes()
    except OSError as exc:
        raise ManifestMissing(str(path), found=exc.strerror, expected="a manifest") from exc


def write_manifest(folder: Path, raw: bytes) -> None:
    """Write a bundle's manifest.json and its digest, last of all files."""
    (folder / DIGEST_FILE).write_text(_digest_line(raw), "ascii")
    (folder / MANIFEST_FILE).write_bytes(raw)


def check_manifest_digest(folder: Path, raw: bytes) -> None:
    """Check that manifest.json is what was written: the folder's digest of it says so.

    Raises:
        FileMissing, FileDigest: see `bundle.errors`.
    """
    path = folder / DIGEST_FILE
    if not path.is_file():
        raise FileMissing(str(path), found="no plain file", expected="the digest of the manifest")
    try:
        with path.open("rb") as file:
            line = file.read(1024)
    except OSError as exc:
        raise FileMissing(str(path), found=exc.strerror, expected="the digest of the manifest") from exc
    if line != (wanted := _digest_line(raw).encode("ascii")):
        found = f"sha256 {wanted.split()[0].decode()}"
        raise FileDigest(str(folder / MANIFEST_FILE), found=found, expected=f"what {DIGEST_FILE} says: {line[:80]!r}")


def _digest_line(raw: bytes) -> str:
    return f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST_FILE}\n"


def parse_manifest(folder: Path, raw: bytes) -> Manifest:
    """Return the manifest that the bytes of a folder's manifest.json hold.

    Raises:
        ManifestVersion, ManifestInvalid: see `bundle.errors`.
    """
    path = folder / MANIFEST_FILE
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise ManifestInvalid(str(path), found=f"{exc}", expected="a JSON document") from exc
    if not isinstance(document, dict):
        raise ManifestInvalid(str(path), found=type(document).__name__, expected="an object")
    if (version := document.get("schema_version")) != MANIFEST_VERSION:
        raise ManifestVersion(f"{path}: schema_version", found=version, expected=MANIFEST_VERSION)
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        found = repr(first["input"])
        raise ManifestInvalid(f"{path}: {place}", found=found[:80], expected=first["msg"]) from None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the folder holds exactly the manifest's files, whole and unchanged.

    Raises:
        FileMissing, FileNotListed, FileUnsafe, FileSize, FileDigest: see `bundle.errors`.
    """
    present = {entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()}
    for name in sorted(manifest.files):
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise FileUnsafe(f"{folder}: file {name!r}", found="a path that leaves the folder", expected="a file in it")
        if not path.is_symlink() and not path.exists():
            raise FileMissing(str(path), found="no such file", expected="the file that the manifest lists")
        if path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
            raise FileUnsafe(str(path), found="a link or special file", expected="a plain file with one name")
    if extra := sorted(present - manifest.files.keys() - _BESIDE):
        raise FileNotListed(str(folder / extra[0]), found="a file that the manifest lacks", expected="only its files")
    for name, entry in sorted(manifest.files.items()):
        if (size := (folder / name).stat().st_size) != entry.size_bytes:
            raise FileSize(str(folder / name), found=f"{size} bytes", expected=f"{entry.size_bytes} bytes")
    for name, entry in sorted(manifest.files.items()):
        if (digest := sha256_of(folder / name)) != entry.sha256:
            raise FileDigest(str(folder / name), found=f"sha256 {digest}", expected=f"sha256 {entry.sha256}")


def list_files(folder: Path) -> Mapping[str, FileEntry]:
    """Return size and digest of every file below a folder but the manifest, its digest and signature, by path in it."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _BESIDE
    }
