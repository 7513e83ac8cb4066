"""`dlen models list|verify|sign`: every version on disk, whether its files are whole, and who has signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bundle.errors import BundleError
from bundle.files import write_file
from bundle.manifest import manifest_bytes
from bundle.read import read_bundle
from bundle.signature import TrustedKeys, read_signing_key, write_signature
from service.errors import ModelsMissing
from service.models import versions_of


def inventory(folder: Path, trusted: TrustedKeys | None = None) -> list[dict[str, Any]]:
    """Return one document per version; `problem` is None where its files, and with `trusted` its signature, are good.

    Raises:
        ModelsMissing: no such folder.
    """
    if not folder.is_dir():
        raise ModelsMissing(f"models folder {folder}", found="no such folder", expected="<name>/<version>/ bundles")
    models = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [_entry(model / str(version), trusted) for model in models for version in versions_of(model)]


def _entry(folder: Path, trusted: TrustedKeys | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": folder.parent.name, "version": int(folder.name), "problem": None}
    try:
        bundle = read_bundle(folder, trusted)
    except BundleError as exc:
        return entry | {"problem": str(exc)}
    manifest = bundle.manifest
    return entry | {
        "architecture": manifest.architecture,
        "tasks": list(manifest.task_names),
        "has_p_up": manifest.has_latent,
        "precision": manifest.precision,
        "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "created_at": manifest.provenance.created_at,
        "signed_by": bundle.signed_by,
    }


def print_models(folder: Path, json_file: Path | None, trusted: TrustedKeys | None = None) -> int:
    """Print the inventory as a table, and a line for each broken version; return 2 when there is any."""
    entries = inventory(folder, trusted)
    if json_file is not None:
        write_file(json_file, orjson.dumps({"models": entries}, option=orjson.OPT_INDENT_2))
    table = Table("model", "version", "architecture", "tasks", "P(UP)", "precision", "size", "state")
    for entry in entries:
        if entry["problem"] is not None:
            table.add_row(entry["name"], str(entry["version"]), "", "", "", "", "", "[red]broken")
            continue
        table.add_row(
            entry["name"],
            str(entry["version"]),
            entry["architecture"],
            ", ".join(entry["tasks"]),
            "yes" if entry["has_p_up"] else "no",
            entry["precision"],
            f"{entry['size_bytes'] / 1e6:.1f} MB",
            "whole" if entry["signed_by"] is None else f"whole, signed by {entry['signed_by']}",
        )
    console, problems = Console(), [entry["problem"] for entry in entries if entry["problem"] is not None]
    console.print(table)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    return 2 if problems else 0


def sign_version(folder: Path, key_file: Path) -> int:
    """Sign the version in a folder, which must be whole, and say by which key.

    Raises:
        KeyInvalid: no signing key.
        BundleError: the version is not whole.
    """
    key = read_signing_key(key_file)
    read_bundle(folder)
    signed_by = write_signature(folder, folder, manifest_bytes(folder), key)
    Console(soft_wrap=True, highlight=False).print(f"{folder}: signed by {signed_by}")
    return 0
