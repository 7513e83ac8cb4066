"""Dataset schema files: what is accepted, and what is refused with file, place, found and expected."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.errors import DatasetSchemaInvalid
from training.schema import RandomSplit, read_dataset_schema

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
BASE = {
    "columns": {"user": "u", "time": "t"},
    "split": {"by": "time", "validation_from": 10, "test_from": 20},
    "tasks": [{"name": "click", "label": "is_click"}],
    "features": [{"name": "a", "side": "item", "kind": "numeric"}],
}


def written(folder, document):
    path = folder / "schema.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_schemas_are_valid(path):
    assert read_dataset_schema(path).tasks


def test_a_label_is_never_a_feature_in_the_shipped_schemas():
    outcomes = {"long_view", "play_time_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter"}
    for path in CONFIGS.glob("kuairand*.yaml"):
        schema = read_dataset_schema(path)
        assert not outcomes & {feature.name for feature in schema.features}


def test_wanted_columns_name_every_purpose(tmp_path):
    wanted = read_dataset_schema(written(tmp_path, BASE)).wanted_columns
    assert set(wanted) == {"u", "t", "a", "is_click"}
    assert "click" in wanted["is_click"]


def test_a_split_file_replaces_the_split(tmp_path):
    split = tmp_path / "split.yaml"
    split.write_text("split: {by: random, seed: 7}")
    assert read_dataset_schema(written(tmp_path, BASE), split).split == RandomSplit(by="random", seed=7)


@pytest.mark.parametrize(
    ("change", "place", "found", "expected"),
    [
        ({"tasks": []}, "tasks", "list", "at least 1"),
        ({"tasks": [{"name": "click"}]}, "tasks.0 (click).label", "nothing", "required"),
        ({"tasks": [{"name": "Click", "label": "x"}]}, "tasks.0 (Click).name", "'Click'", "pattern"),
        ({"tasks": [BASE["tasks"][0]] * 2}, "document", "contradiction", "unique"),
        ({"tasks": [{"name": "c", "label": "l", "held_out": True}]}, "document", "contradiction", "held out"),
        ({"tasks": [{"name": "c", "label": "a"}]}, "document", "contradiction", "label must not be a feature, found a"),
        ({"features": [{"name": "a", "side": "shop", "kind": "numeric"}]}, "features.0 (a).side", "'shop'", "'user'"),
        ({"features": [{"name": "a", "side": "user", "kind": "numeric"}]}, "document", "contradiction", "side item"),
        (
            {"split": {"by": "time", "validation_from": 20, "test_from": 10}},
            "split",
            "contradiction",
            "before test_from",
        ),
        ({"split": {"by": "time", "validation_from": 1, "test_from": "b"}}, "split", "contradiction", "one type"),
        ({"split": {"by": "moon"}}, "split.by", "'moon'", "'time', 'column', 'random'"),
        ({"split": {"by": "random", "test": 0.6, "validation": 0.5}}, "split", "contradiction", "below 1"),
        ({"columns": {}}, "document", "contradiction", "columns.time"),
        ({"colour": "red"}, "colour", "'red'", "no such key"),
        ({"tasks": [{"name": "c", "label": "l", "held_out": "so"}]}, "tasks.0 (c).held_out", "'so'", "a valid boolean"),
        ({"features": [{"name": "a", "side": "item"}]}, "features.0 (a).kind", "nothing", "required"),
        ({"tasks": [{"name": "click", "lable": "x"}]}, "tasks.0 (click).lable", "'x'", "no such key here (and 2 more)"),
        (
            {"features": [{"name": "a", "side": "user", "kind": "number"}]},
            "features.0 (a).kind",
            "'number'",
            "'numeric'",
        ),
    ],
)
def test_a_wrong_schema_names_file_place_found_and_expected(tmp_path, change, place, found, expected):
    with pytest.raises(DatasetSchemaInvalid) as caught:
        read_dataset_schema(written(tmp_path, BASE | change))
    error = caught.value
    assert error.thing == f"{tmp_path / 'schema.yaml'}: {place}"
    assert found in str(error.found)
    assert expected in str(error.expected)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1"),
        ("- a", "got list"),
        ("", "got NoneType"),
        ("version: 1\nversion: 1\n", "line 2, column 1: got key 'version' given twice"),
        ("a: !!python/object:os.system {}", "line 1"),
    ],
)
def test_text_that_is_no_mapping_names_its_line(tmp_path, text, message):
    with pytest.raises(DatasetSchemaInvalid) as caught:
        read_dataset_schema(written(tmp_path, text))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetSchemaInvalid, match="nowhere.yaml: got No such file"):
        read_dataset_schema(tmp_path / "nowhere.yaml")
