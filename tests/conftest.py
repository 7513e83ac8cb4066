"""Fixtures shared by all tests: the real logs, and one small path from simulated logs to a bundle."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG_FILES = (
    "test_whole_path.py",
    "test_demo.py",
    "service/test_server.py",
    "loadtest/test_scenarios_real.py",
    "loadtest/test_commands.py",
    "training/sources/test_kuairand.py",
    "training/test_parallel.py",
    "loadtest/test_run.py",
    "training/test_against.py",
    "loadtest/test_scenario_overload.py",
    "training/test_scale.py",
    "deploy/test_images.py",
    "deploy/test_rules.py",
    "fusion/test_experiments.py",
)
"""Files that take 15 seconds and more, the longest first: begun last, one of them would keep one core for minutes."""
REQUIRE_REAL = os.environ.get("DLEN_REQUIRE_REAL") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def skip_or_fail(reason: str) -> None:
    """Skip the test, or fail it where every real component and log must be there."""
    if REQUIRE_REAL:
        pytest.fail(f"DLEN_REQUIRE_REAL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """Return the folder of the KuaiRand-Pure logs."""
    root = Path(os.environ.get("DLEN_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    folder = (root / "kuairand-pure").resolve()
    if not folder.is_dir():
        skip_or_fail(f"no KuaiRand-Pure logs at {folder} (set DLEN_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_prepared(real_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the KuaiRand-Pure logs, prepared once for all processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "kuairand"
    with (shared / "kuairand.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "prepared.json").exists():
            run_dlen("prepare", "--source", "kuairand", "--input", real_logs, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def json_loops():
    """Return the service's compiled loops for JSON."""
    return _built("service.wire.compiled_json")


@pytest.fixture(scope="session")
def arrow_loops():
    """Return the service's compiled loops for Arrow."""
    return _built("service.wire.compiled_arrow")


@pytest.fixture(scope="session")
def hash_loops():
    """Return the contract package's compiled loop."""
    return _built("bundle.compiled")


@pytest.fixture(scope="session")
def score_loops():
    """Return fusion's compiled loop."""
    return _built("fusion.compiled")


@pytest.fixture(scope="session")
def compiled_tally():
    """Return the service's compiled tallies."""
    return _built("service.compiled_tally")


@pytest.fixture(scope="session")
def training_loops():
    """Return training's compiled loop."""
    return _built("training.compiled")


@pytest.fixture(scope="session")
def operators_library():
    """Return the library of our operators for ONNX Runtime."""
    return _built("bundle.operators.native")


def _built(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        skip_or_fail(f"{name} is not built (cc and Python's headers, then make install)")
        raise


@pytest.fixture(scope="session")
def system_command():
    """Return a function from a command's name to its path, for components that the system must bring."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is None:
            skip_or_fail(f"{name} is not installed")
        return str(path)

    return find


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 12,000 simulated impressions."""
    folder = tmp_path_factory.mktemp("simulated") / "logs"
    run_dlen("simulate", "--out", folder, "--impressions", 12_000, "--seed", 5)
    return folder


@pytest.fixture(scope="session")
def prepared(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the simulated impressions, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    run_dlen("prepare", "--source", "simulator", "--input", simulated, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def nested(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the simulated rows with every label cleared where there was no click."""
    folder = tmp_path_factory.mktemp("nested") / "data"
    shutil.copytree(prepared, folder)
    info = json.loads((folder / "prepared.json").read_text())
    for split in ("train", "validation", "test"):
        labels = np.load(folder / split / "labels.npy")
        labels[:, 1:5] &= labels[:, :1]
        np.save(folder / split / "labels.npy", labels)
        if split == "train":
            for task, rate in zip(info["tasks"], labels.mean(0).tolist(), strict=True):
                task["base_rate"] = rate
    (folder / "prepared.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Return the settings of the small DLEN-MMOE that `trained` holds."""
    settings = "expert_hidden=[16,8] latent_hidden=[16,8] experts=3 epochs=2 batch_size=256 learning_rate=0.005"
    return [argument for setting in settings.split() for argument in ("--set", setting)]


@pytest.fixture(scope="session")
def trained(tiny: list[str], prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a small DLEN-MMOE trained on the simulated impressions."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_dlen("train", "--data", prepared, "--out", folder, *tiny)
    return folder


@pytest.fixture(scope="session")
def models(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder holding the bundle `demo/1`; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("bundles") / "models"
    run_dlen("export", "--run", trained, "--out", folder / "demo" / "1")
    return folder


@pytest.fixture(scope="session")
def item_table(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of the simulated items' features."""
    file = tmp_path_factory.mktemp("items") / "items.parquet"
    run_dlen("items", "--data", prepared, "--out", file)
    return file


@pytest.fixture(scope="session")
def item_models(trained: Path, item_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models folder with an item table in both kinds of rows: `layer1/1` and `packed/1`; not to be changed."""
    folder = tmp_path_factory.mktemp("item-bundles") / "models"
    for rows in ("layer1", "packed"):
        out = folder / rows / "1"
        run_dlen("export", "--run", trained, "--out", out, "--items", item_table, "--item-rows", rows)
    return folder


def run_dlen(*arguments: object) -> None:
    """Run one `dlen` command in this process; its exit code must be 0."""
    from cli import main

    assert main([str(argument) for argument in arguments]) == 0
