"""The bill of materials names what the service image installs, no more and no less."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import skip_or_fail

ROOT = Path(__file__).parents[2]


def test_the_bill_of_materials_lists_every_locked_package_with_its_hashes(tmp_path):
    if importlib.util.find_spec("cyclonedx_py") is None:
        skip_or_fail("cyclonedx-bom is not installed")
    recipe = re.search(r"^sbom:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    words = recipe[1].replace("\\\n", " ").split()
    assert words[0] == "$(VENV)/bin/cyclonedx-py" and words[-1] == "sbom.json" and "--validate" in words
    done = subprocess.run([sys.executable, "-m", "cyclonedx_py", *words[1:-1], str(tmp_path / "sbom.json")],
                          cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert (found["bomFormat"], found["metadata"]["component"]["name"]) == ("CycloneDX", "dlen-ranker")
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / "requirements/service.lock").read_text(), re.M))
    assert {c["name"]: c["version"] for c in found["components"]} == locked and len(locked) > 15
    assert all(reference.get("hashes") for c in found["components"] for reference in c["externalReferences"])
    assert "torch" not in locked
