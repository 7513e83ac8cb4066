"""The gate: what may serve, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from bundle import errors as bundle_errors
from service.errors import ModelsMissing
from service.metrics import Metrics
from service.models import LoadedModel, ModelRepository, versions_of
from service.settings import Settings


@pytest.fixture
def folder(tmp_path, make_bundle) -> Path:
    make_bundle(tmp_path / "models" / "tiny" / "1")
    return tmp_path / "models"


def repository(folder: Path, **settings: object) -> ModelRepository:
    values = Settings.model_validate({"models": folder, "fusion": "f", **settings})
    return ModelRepository(values, Metrics(CollectorRegistry()))


def accept(model: LoadedModel) -> None:
    """A fusion config that fits every model."""


def serving(found: ModelRepository) -> dict[str, int]:
    return {name: model.version for name, model in found.serving.items()}


def failures(found: ModelRepository, reason: str) -> float | None:
    registry = found._metrics.registry
    return registry.get_sample_value("dlen_load_failures_total", {"kind": "model", "reason": reason})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def test_versions_are_whole_numbers_and_nothing_else(tmp_path):
    for name in ("1", "10", "2", "03", "-1", "x", ".7.tmp", "1.5", "٣", "0"):
        (tmp_path / name).mkdir()
    (tmp_path / "4").write_text("a file")
    assert versions_of(tmp_path) == [0, 1, 2, 10]


def test_the_highest_version_by_number_serves(folder, make_bundle):
    for version in ("9", "10"):
        make_bundle(folder / "tiny" / version)
    found = repository(folder)
    found.load_all(accept)
    assert serving(found) == {"tiny": 10}


def test_a_pinned_version_serves_although_there_are_higher_ones(folder, make_bundle):
    make_bundle(folder / "tiny" / "2")
    found = repository(folder, version=1)
    found.load_all(accept)
    assert serving(found) == {"tiny": 1}


def test_every_name_serves_unless_one_is_chosen(folder, make_bundle):
    make_bundle(folder / "other" / "4")
    (folder / "empty").mkdir()
    both, one = repository(folder), repository(folder, model="other")
    both.load_all(accept)
    one.load_all(accept)
    assert serving(both) == {"tiny": 1, "other": 4}
    assert serving(one) == {"other": 4}


def test_a_broken_version_gives_way_to_the_next_lower_one(folder, make_bundle, caplog):
    flip(make_bundle(folder / "tiny" / "2") / "model.onnx")
    found = repository(folder)
    with caplog.at_level(logging.ERROR):
        found.load_all(accept)
    assert serving(found) == {"tiny": 1}
    assert "tiny/2 refused" in caplog.text
    assert failures(found, "FileDigest") == 1


def test_a_newer_good_version_takes_over_and_a_newer_bad_one_does_not(folder, make_bundle):
    found = repository(folder)
    found.load_all(accept)
    flip(make_bundle(folder / "tiny" / "2") / "golden.npz")
    assert isinstance(found.refresh("tiny", accept), bundle_errors.FileDigest)
    assert serving(found) == {"tiny": 1}
    make_bundle(folder / "tiny" / "3", seed=3)
    found.refresh("tiny", accept)
    assert serving(found) == {"tiny": 3}


def test_a_refused_version_is_tried_again_only_when_its_content_changes(folder, make_bundle):
    found = repository(folder)
    found.load_all(accept)
    make_bundle(folder / "tiny" / "2", golden_error=0.1)
    found.refresh("tiny", accept)
    found.refresh("tiny", accept)
    assert failures(found, "GoldenMismatch") == 1
    shutil.rmtree(folder / "tiny" / "2")
    make_bundle(folder / "tiny" / "2", seed=5)
    found.refresh("tiny", accept)
    assert serving(found) == {"tiny": 2}


def test_nothing_to_serve_is_named(tmp_path):
    with pytest.raises(ModelsMissing, match="no such folder"):
        repository(tmp_path / "none").load_all(accept)
    with pytest.raises(ModelsMissing, match="no model in it"):
        repository(tmp_path).load_all(accept)
    with pytest.raises(ModelsMissing, match="model 'x'"):
        repository(tmp_path, model="x").load_all(accept)


def tiny_graph(outputs: dict[str, list[int | str]], inputs: dict[str, tuple[int, list[int | str]]]) -> onnx.ModelProto:
    """A graph whose outputs are constants."""
    nodes, weights = [], []
    for name, shape in outputs.items():
        weights.append(
            numpy_helper.from_array(np.full([4 if s == "N" else s for s in shape], 0.5, np.float32), f"c_{name}")
        )
        nodes.append(helper.make_node("Identity", [f"c_{name}"], [name]))
    given = [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()]
    taken = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()]
    graph = helper.make_graph(nodes, "constant", given, taken, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


INPUTS = {
    "request_codes": (TensorProto.INT32, [1, 2]),
    "request_values": (TensorProto.FLOAT, [1, 2]),
    "item_codes": (TensorProto.INT32, ["N", 4]),
    "item_values": (TensorProto.FLOAT, ["N", 2]),
}
OUTPUTS: dict[str, list[int | str]] = {"p": ["N", 3], "p_joint": ["N", 3], "p_up": ["N"]}


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        ({**OUTPUTS, "p": ["N", 4]}, INPUTS, "output 'p'"),
        ({"p": ["N", 3], "p_joint": ["N", 3], "up": ["N"]}, INPUTS, "outputs: got ['p', 'p_joint', 'up']"),
        (OUTPUTS, {**INPUTS, "item_codes": (TensorProto.INT64, ["N", 4])}, "input 'item_codes': got tensor(int64)"),
        (OUTPUTS, {k: v for k, v in INPUTS.items() if k != "item_values"}, "inputs: got"),
        (OUTPUTS, {**INPUTS, "request_codes": (TensorProto.INT32, ["N", 2])}, "input 'request_codes'"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(tmp_path, make_bundle, outputs, inputs, message):
    folder = make_bundle(tmp_path / "m" / "tiny" / "1")
    (folder / "model.onnx").write_bytes(tiny_graph(outputs, inputs).SerializeToString())
    relist(folder)
    with pytest.raises(bundle_errors.TensorMismatch) as caught:
        repository(tmp_path / "m").load_all(accept)
    assert message in str(caught.value)


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path, make_bundle):
    folder = make_bundle(tmp_path / "m" / "tiny" / "1")
    (folder / "model.onnx").write_bytes(b"not a graph" * 100)
    relist(folder)
    with pytest.raises(bundle_errors.TensorMismatch) as caught:
        repository(tmp_path / "m").load_all(accept)
    assert "\n" not in str(caught.value)


def test_weights_outside_the_bundle_are_never_read(tmp_path, make_bundle):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(2 * 7, np.float32).tobytes())
    folder = make_bundle(tmp_path / "m" / "tiny" / "1")
    model = onnx.load(folder / "model.onnx")
    (weight,) = (w for w in model.graph.initializer if w.name == "w_request_codes")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../secret.bin"), ("offset", "0"), ("length", str(2 * 7 * 4))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    relist(folder)
    with pytest.raises(bundle_errors.TensorMismatch):
        repository(tmp_path / "m").load_all(accept)


def relist(folder: Path) -> None:
    """Give a bundle's manifest the digests of what its files hold now."""
    from bundle.manifest import list_files, read_manifest, write_manifest

    manifest = read_manifest(folder).model_copy(update={"files": dict(list_files(folder))})
    write_manifest(folder, manifest.model_dump_json().encode())
