"""What the service image leaves out stays out, also by way of other packages."""

from __future__ import annotations

import subprocess
import sys

LEFT_OUT = "torch onnx polars training model_export matplotlib sklearn lightgbm"


def test_importing_every_serving_module_loads_nothing_of_training():
    code = (
        "import importlib, pkgutil, sys\n"
        "for root in ('service', 'fusion', 'bundle'):\n"
        "    package = importlib.import_module(root)\n"
        "    for module in pkgutil.walk_packages(package.__path__, root + '.'):\n"
        "        importlib.import_module(module.name)\n"
        f"print(sorted(set({LEFT_OUT.split()!r}) & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
