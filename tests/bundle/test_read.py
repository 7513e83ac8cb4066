"""A bundle on disk: one error per way it can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bundle.errors
from bundle.errors import (
    BundleError,
    FileDigest,
    FileMissing,
    FileNotListed,
    FileSize,
    FileUnsafe,
    GoldenInvalid,
    GoldenMismatch,
    ManifestInvalid,
    ManifestMissing,
    ManifestVersion,
    SchemaInvalid,
    SchemaNotFitted,
)
from bundle.files import sha256_of, write_file
from bundle.golden import Golden, check_replay, golden_bytes
from bundle.manifest import Manifest, Parity, Provenance, Task, list_files, write_manifest
from bundle.read import input_tensors, output_tensors, read_bundle, read_schema

FEATURES = {
    "features": [
        {"name": "u", "side": "user", "kind": "categorical", "value_type": "integer",
         "encoding": {"type": "hash", "buckets": 8}},
        {"name": "i", "side": "item", "kind": "numeric",
         "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}},
    ]
}  # fmt: skip
N = 3


def golden_of(manifest_inputs, manifest_outputs):
    def array(tensor):
        shape = tuple(N if size == "N" else size for size in tensor.shape)
        return np.full(shape, 0.25).astype(tensor.dtype)

    return Golden({t.name: array(t) for t in manifest_inputs}, {t.name: array(t) for t in manifest_outputs})


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Return a folder that `read_bundle` accepts; the graph is never looked at, so any bytes will do."""
    folder = tmp_path_factory.mktemp("bundle") / "1"
    folder.mkdir()
    write_file(folder / "features.json", json.dumps(FEATURES).encode())
    write_file(folder / "model.onnx", b"graph" * 100)
    inputs, outputs = input_tensors(read_schema(folder / "features.json")), output_tensors(2, has_latent=True)
    write_file(folder / "golden.npz", golden_bytes(golden_of(inputs, outputs)))
    manifest = Manifest(
        architecture="dlen-mmoe",
        tasks=(Task(name="click", base_rate=0.4, alpha=0.1), Task(name="like", base_rate=0.02, alpha=0.01)),
        inputs=inputs,
        outputs=outputs,
        opset=17,
        parity=Parity(tolerance=1e-5, max_abs_error=1e-6, rows=10),
        files=dict(list_files(folder)),
        provenance=Provenance(
            data_fingerprint="sha256:0", git_commit="0", created_at="2025-01-01T00:00:00Z", loss="joint", seed=1
        ),
    )
    write_manifest(folder, manifest.model_dump_json().encode())
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "1"))


def change_manifest(folder, change):
    document = json.loads((folder / "manifest.json").read_text())
    change(document)
    write_manifest(folder, json.dumps(document).encode())


def relist(folder, name):
    """Make the manifest list a changed file, so that later checks see it."""
    path = folder / name

    def change(document):
        document["files"][name] = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}

    change_manifest(folder, change)


def test_a_sound_bundle_is_read_whole(sound):
    found = read_bundle(sound)
    assert found.manifest.task_names == ("click", "like")
    assert found.manifest.has_latent
    assert [f.name for f in found.schema.features] == ["u", "i"]
    assert found.golden.inputs["item_values"].shape == (N, 2)
    assert found.model_path.is_file()


def remove(name):
    return lambda folder: (folder / name).unlink()


def flip(name, at):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[at % len(data)] ^= 1
        (folder / name).write_bytes(bytes(data))

    return damage


def in_manifest(change):
    return lambda folder: change_manifest(folder, change)


def replaced(name, data):
    def damage(folder):
        (folder / name).write_bytes(data)
        relist(folder, name)

    return damage


def golden_with(change):
    def damage(folder):
        golden = read_bundle(folder).golden
        change(golden)
        (folder / "golden.npz").write_bytes(golden_bytes(golden))
        relist(folder, "golden.npz")

    return damage


def symlink(folder):
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def hard_link(folder):
    os.link(folder / "model.onnx", folder.parent / "second-name")


def pipe(name):
    def replace(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def leaves_the_folder(document):
    document["files"]["../x"] = document["files"]["model.onnx"]


UNFITTED = json.dumps(FEATURES).replace('"mean": 0.0, ', "").encode()

WRONG = {
    "no manifest": (remove("manifest.json"), ManifestMissing, "manifest.json"),
    "manifest is a pipe": (pipe("manifest.json"), ManifestInvalid, "manifest.json"),
    "digest of the manifest is a pipe": (pipe("manifest.sha256"), FileMissing, "manifest.sha256"),
    "manifest is no JSON": (lambda f: (f / "manifest.json").write_text("{"), ManifestInvalid, "manifest.json"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), ManifestInvalid, "manifest.json"),
    "manifest nested too deep": (
        lambda f: (f / "manifest.json").write_text("[" * 200_000), ManifestInvalid, "manifest.json"),
    "other version": (in_manifest(lambda d: d.update(schema_version=2)), ManifestVersion, "schema_version"),
    "unknown key": (in_manifest(lambda d: d.update(colour=1)), ManifestInvalid, "colour"),
    "task without alpha": (in_manifest(lambda d: d["tasks"][0].update(alpha=None)), ManifestInvalid, "document"),
    "task twice": (in_manifest(lambda d: d["tasks"][1].update(name="click")), ManifestInvalid, "document"),
    "inputs of another schema": (in_manifest(lambda d: d["inputs"][0].update(shape=[1, 9])), ManifestInvalid, "inputs"),
    "golden not listed": (in_manifest(lambda d: d["files"].pop("golden.npz")), ManifestInvalid, "document"),
    "file missing": (remove("model.onnx"), FileMissing, "model.onnx"),
    "file not listed": (lambda f: (f / "extra.bin").write_bytes(b"x"), FileNotListed, "extra.bin"),
    "symbolic link": (symlink, FileUnsafe, "model.onnx"),
    "hard link": (hard_link, FileUnsafe, "model.onnx"),
    "path that leaves the folder": (in_manifest(leaves_the_folder), FileUnsafe, "../x"),
    "file cut short": (lambda f: (f / "model.onnx").write_bytes(b"graph"), FileSize, "model.onnx"),
    "flipped byte in the graph": (flip("model.onnx", 17), FileDigest, "model.onnx"),
    "flipped byte in the schema": (flip("features.json", 5), FileDigest, "features.json"),
    "flipped byte in the golden": (flip("golden.npz", -30), FileDigest, "golden.npz"),
    "no digest of the manifest": (remove("manifest.sha256"), FileMissing, "manifest.sha256"),
    "schema is no schema": (replaced("features.json", b"{}"), SchemaInvalid, "features"),
    "schema not fitted": (replaced("features.json", UNFITTED), SchemaNotFitted, "'i'"),
    "golden is no archive": (replaced("golden.npz", b"not a zip"), GoldenInvalid, "golden.npz"),
    "golden lacks an input": (golden_with(lambda g: g.inputs.pop("item_values")), GoldenInvalid, "item_values"),
    "golden of another type": (
        golden_with(lambda g: g.outputs.update(p=g.outputs["p"].astype(np.float64))), GoldenInvalid, "output.p"),
    "golden of uneven length": (
        golden_with(lambda g: g.outputs.update(p_up=g.outputs["p_up"][:1])), GoldenInvalid, "golden.npz"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "features.json", "golden.npz", "model.onnx"])
def test_no_flipped_byte_goes_unseen(folder, name):
    content = (folder / name).read_bytes()
    for at in range(0, len(content), max(1, len(content) // 300)):
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError):
            read_bundle(folder)
    (folder / name).write_bytes(content)
    read_bundle(folder)


def test_the_digest_of_the_manifest_is_what_sha256sum_takes(folder):
    subprocess.run(["sha256sum", "--check", "--strict", "manifest.sha256"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("damage, error, named", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_bundle_is_refused_with_its_own_error(folder, damage, error, named):
    damage(folder)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert type(caught.value) is error
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("at", range(0, 500, 7))
def test_any_flipped_byte_of_the_graph_is_found(folder, at):
    flip("model.onnx", at)(folder)
    with pytest.raises(FileDigest):
        read_bundle(folder)


def test_replay_accepts_the_tolerance_and_no_more(sound):
    golden = read_bundle(sound).golden
    outputs = {name: array + np.float32(1e-4) for name, array in golden.outputs.items()}
    check_replay(golden, outputs, tolerance=2e-4)
    with pytest.raises(GoldenMismatch, match="off by 0.0001"):
        check_replay(golden, outputs, tolerance=5e-5)
    with pytest.raises(GoldenMismatch, match="NaN"):
        check_replay(golden, outputs | {"p": np.full_like(outputs["p"], np.nan)}, tolerance=1)
    with pytest.raises(GoldenMismatch, match="shape"):
        check_replay(golden, outputs | {"p": outputs["p"][:1]}, tolerance=1)


def test_the_drawn_error_tree_names_every_error():
    classes = {name for name, found in vars(bundle.errors).items() if isinstance(found, type)}
    assert {name for name in classes if name not in (bundle.errors.__doc__ or "")} == set()
