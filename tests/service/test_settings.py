from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from service.errors import SettingsInvalid
from service.settings import Settings, load_settings, unknown_variables

ROOT = Path(__file__).parents[2]
GIVEN = {"models": "m", "fusion": "f"}


def test_later_sources_win(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("port: 1\nworkers: 2\nthreads: 3\nmodels: a\nfusion: b\n")
    settings = load_settings({"port": "7", "host": None}, {"DLEN_PORT": "6", "DLEN_WORKERS": "5"}, file)
    assert (settings.port, settings.workers, settings.threads, settings.host) == (7, 5, 3, "127.0.0.1")
    assert settings.models == Path("a")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(GIVEN, {}).port = 1


@pytest.mark.parametrize(
    ("flags", "environment", "text", "message"),
    [
        ({}, {}, None, "setting 'models': got nothing, want --models, DLEN_MODELS or models: in a settings file"),
        (GIVEN | {"port": "http"}, {}, None, "--port: setting 'port': got 'http'"),
        (GIVEN | {"max_in_flight": 0}, {}, None, "--max-in-flight: setting 'max_in_flight': got 0"),
        (GIVEN, {"DLEN_WORKERS": "-1"}, None, "environment DLEN_WORKERS: setting 'workers': got '-1'"),
        (GIVEN, {}, "worker: 2", "setting 'worker': got no such setting, want one of"),
        (GIVEN, {}, "- 1", "got list, want a mapping"),
        (GIVEN, {}, "a: [", "want valid YAML"),
        (GIVEN, {}, "drain_seconds: .nan", "setting 'drain_seconds'"),
    ],
)
def test_a_bad_setting_is_named_with_its_source(tmp_path, flags, environment, text, message):
    file = None
    if text is not None:
        file = tmp_path / "s.yaml"
        file.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(flags, environment, file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(SettingsInvalid, match="none.yaml: got No such file"):
        load_settings(GIVEN, {}, tmp_path / "none.yaml")


def test_variables_that_are_no_setting_are_found():
    found = unknown_variables({"DLEN_PROT": "1", "DLEN_PORT": "2", "DLEN_TEST_DATA": "x", "PATH": "y"})
    assert found == ["DLEN_PROT"]


def test_the_docs_list_every_setting_with_its_default_and_meaning():
    page = (ROOT / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", page[page.index("## Settings") :], re.M)
    wanted = [
        (name, "–" if field.default in (PydanticUndefined, None) else f"`{field.default}`", field.description)
        for name, field in Settings.model_fields.items()
    ]
    assert rows == wanted


def test_the_example_settings_are_valid():
    load_settings({}, {}, ROOT / "configs" / "service.yaml")
