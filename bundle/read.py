"""A bundle read from disk: everything that can be checked without running its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundle.encode import SchemaEncoder
from bundle.errors import ManifestInvalid
from bundle.features import FeatureSchema, read_schema
from bundle.golden import Golden, read_golden
from bundle.items import ItemTable, read_items
from bundle.manifest import (
    FEATURES_FILE,
    FUSED_MODEL_FILE,
    FUSED_ROWS_MODEL_FILE,
    ITEM_CODES,
    ITEM_ENCODER_FILE,
    ITEM_VALUES,
    MODEL_FILE,
    P_JOINT,
    P_UP,
    REQUEST_CODES,
    REQUEST_VALUES,
    ROWS_MODEL_FILE,
    Manifest,
    P,
    Tensor,
    check_files,
    check_manifest_digest,
    manifest_bytes,
    parse_manifest,
)
from bundle.signature import TrustedKeys


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        folder: where it lies.
        manifest: its manifest.json.
        schema: its fitted features.json.
        golden: the request that its graph must reproduce.
        items: its item table, if it has one.
        signed_by: id of the trusted key that has signed it; None where none was asked for.
    """

    folder: Path
    manifest: Manifest
    schema: FeatureSchema
    golden: Golden
    items: ItemTable | None = None
    signed_by: str | None = None

    @property
    def model_path(self) -> Path:
        """Path of the ONNX graph."""
        return self.folder / MODEL_FILE

    @property
    def rows_model_path(self) -> Path:
        """Path of the graph that ranks items' rows."""
        return self.folder / ROWS_MODEL_FILE

    @property
    def fused_model_path(self) -> Path:
        """Path of the ONNX graph in operators of our own."""
        return self.folder / FUSED_MODEL_FILE

    @property
    def fused_rows_model_path(self) -> Path:
        """Path of the graph that ranks items' rows in operators of our own."""
        return self.folder / FUSED_ROWS_MODEL_FILE

    @property
    def item_encoder_path(self) -> Path:
        """Path of the graph that makes items' rows."""
        return self.folder / ITEM_ENCODER_FILE


def read_bundle(folder: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Return the bundle in a folder: manifest, sizes, digests, schema and golden request checked.

    With `trusted`, its manifest must be signed by one of these keys; of one that is not, nothing is parsed.

    Raises:
        BundleError: the subclass names what is wrong.
    """
    raw = manifest_bytes(folder)
    signed_by = None if trusted is None else trusted.check(folder, raw)
    manifest = parse_manifest(folder, raw)
    check_manifest_digest(folder, raw)
    check_files(folder, manifest)
    schema = read_schema(folder / FEATURES_FILE)
    if (wanted := input_tensors(schema)) != manifest.inputs:
        raise ManifestInvalid(f"{folder}: inputs", found=_shown(manifest.inputs), expected=_shown(wanted))
    items = read_items(folder, manifest, SchemaEncoder(schema).item)
    return Bundle(folder, manifest, schema, read_golden(folder, manifest), items, signed_by)


def input_tensors(schema: FeatureSchema) -> tuple[Tensor, ...]:
    """Return the graph inputs that a schema asks for; a part without columns of a kind has no such input."""
    encoder = SchemaEncoder(schema)
    tensors = (
        Tensor(name=REQUEST_CODES, dtype="int32", shape=(1, encoder.request.code_columns)),
        Tensor(name=REQUEST_VALUES, dtype="float32", shape=(1, encoder.request.value_columns)),
        Tensor(name=ITEM_CODES, dtype="int32", shape=("N", encoder.item.code_columns)),
        Tensor(name=ITEM_VALUES, dtype="float32", shape=("N", encoder.item.value_columns)),
    )
    return tuple(tensor for tensor in tensors if tensor.shape[1] != 0)


def output_tensors(tasks: int, *, has_latent: bool) -> tuple[Tensor, ...]:
    """Return the graph outputs: p [N, T], and with the latent state p_joint [N, T] and p_up [N]."""
    marginal = Tensor(name=P, dtype="float32", shape=("N", tasks))
    if not has_latent:
        return (marginal,)
    joint = Tensor(name=P_JOINT, dtype="float32", shape=("N", tasks))
    return (marginal, joint, Tensor(name=P_UP, dtype="float32", shape=("N",)))


def _shown(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in tensors)
