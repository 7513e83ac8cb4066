"""Makes `deploy` importable, which is no installed package: it runs from the repository's root."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def bodies(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Eight real rank requests."""
    from cli import main

    file = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    words = ["request", "--data", str(prepared), "--split", "test", "--count", "8", "--candidates", "40"]
    assert main([*words, "--out", str(file)]) == 0
    return [json.loads(line) for line in file.read_text().splitlines()]
