"""Schemathesis on the running service's own OpenAPI document, all checks; `make fuzz` runs it for long."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import skip_or_fail

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "fuzz-admin-key-0123"


def test_generated_requests_find_nothing_that_the_document_does_not_say(serve, tmp_path):
    if importlib.util.find_spec("schemathesis") is None:
        skip_or_fail("schemathesis is not installed")
    (tmp_path / "keys").write_text(ADMIN_KEY)
    service = serve("--fusion-state", str(tmp_path / "state"), "--admin-keys-file", str(tmp_path / "keys"),
                    DLEN_MAX_CANDIDATES="50", DLEN_MAX_BODY_BYTES="100000", DLEN_DRAIN_SECONDS="0")  # fmt: skip
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--checks", "all"]
    command += ["--seed", "1", "--max-examples", "2", "--phases", "examples,coverage,fuzzing", "--no-color"]
    command += ["--generation-database", "none", "-H", f"X-Admin-Key: {ADMIN_KEY}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 selected / 17 total" in done.stdout
    (generated,) = re.findall(r"(\d+) generated", done.stdout)
    assert int(generated) > 200
    assert service.lines(level="error") == [], "nothing that was generated is a bug"
    assert service.metric("dlen_http_requests_total", route="/v1/rank", status="200") > 0
