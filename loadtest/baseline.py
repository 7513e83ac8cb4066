"""Rounds kept in a file, so that a later version can be held against them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.environment import describe_environment
from loadtest.errors import BaselineInvalid
from loadtest.run import Load
from loadtest.traffic import Target

FORMAT = 1
_MAX_BYTES = 16 << 20


def rounds_document(
    target: Target, load: Load, bodies: Sequence[bytes], rounds: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Return rounds as the JSON document that `read_baseline` reads."""
    return {
        "format": FORMAT,
        "kind": "rounds",
        "url": target.url,
        "load": asdict(load),
        "bodies_sha256": _digest(bodies),
        "environment": describe_environment(),
        "rounds": list(rounds),
    }


def read_baseline(path: Path, load: Load, bodies: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the rounds of a baseline file that was measured with the same load and the same bodies.

    Raises:
        BaselineInvalid: the file does not read, or was measured otherwise; names the first setting that differs.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BaselineInvalid(str(path), found="a larger file", expected=f"at most {_MAX_BYTES} bytes")
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise BaselineInvalid(str(path), found=exc.strerror, expected="a readable baseline") from exc
    except (ValueError, RecursionError) as exc:
        raise BaselineInvalid(str(path), found=str(exc)[:80], expected="JSON of `dlen loadtest compare`") from exc
    if not isinstance(document, dict) or document.get("kind") != "rounds" or document.get("format") != FORMAT:
        raise BaselineInvalid(str(path), found="another document", expected="JSON of `dlen loadtest compare`")
    rounds, measured = document.get("rounds"), document.get("load")
    if not isinstance(rounds, list) or not all(isinstance(entry, dict) for entry in rounds):
        raise BaselineInvalid(f"{path}: rounds", found=type(rounds).__name__, expected="a list of rounds")
    for name, value in asdict(load).items():
        stored = measured.get(name) if isinstance(measured, dict) else None
        if stored != value:
            raise BaselineInvalid(f"{path}: {name}", found=stored, expected=value)
    if document.get("bodies_sha256") != _digest(bodies):
        raise BaselineInvalid(f"{path}: bodies", found="other request bodies", expected="the same as now")
    return rounds


def _digest(bodies: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for body in bodies:
        digest.update(len(body).to_bytes(8, "little") + body)
    return digest.hexdigest()
