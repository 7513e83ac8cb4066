"""Versions, pins and the audit log in the state folder."""

from __future__ import annotations

import json
import os
import threading

import pytest

from fusion.errors import HistoryError
from fusion.history import KEPT_VERSIONS, History
from fusion.policy import parse_config


def files(weight):
    text = f"default: a\npolicies:\n  a: {{formula: weighted_sum, weights: {{click: {weight}.0}}}}\n"
    return {"fusion.yaml": text.encode()}


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "state")


def audit_lines(history):
    return [json.loads(line) for line in (history.folder / "audit.jsonl").read_text().splitlines()]


def test_a_pin_serves_the_stored_files_to_the_byte_until_it_is_taken_away(history, tmp_path):
    path = tmp_path / "fusion.yaml"
    path.write_bytes(files(2)["fusion.yaml"])
    first = history.record(files(1))
    history.record(history.read(path), previous=first)
    history.pin(history.resolve(first[7:15]), by="test")
    assert history.read(path) == files(1)
    assert parse_config(history.read(path)).version == first
    history.unpin(by="test")
    assert history.read(path) == {str(path): files(2)["fusion.yaml"]}


def test_every_change_is_one_appended_line(history):
    first = history.record(files(1))
    second = history.record(files(2), previous=first)
    history.pin(first, by="me")
    history.unpin(by="me")
    history.unpin(by="me")
    lines = audit_lines(history)
    assert [(line["event"], line["version"]) for line in lines] == [
        ("activated", first),
        ("activated", second),
        ("pinned", first),
        ("unpinned", first),
    ]
    assert lines[1]["previous"] == first
    assert lines[2]["by"] == "me"
    assert all(line["pid"] == os.getpid() and line["time"].endswith("Z") for line in lines)


def test_the_last_versions_and_the_pinned_one_are_kept(history):
    versions = []
    for weight in range(1, KEPT_VERSIONS + 6):
        version = history.record(files(weight))
        os.utime(history.folder / "versions" / f"{version[7:]}.json", (weight, weight))
        versions.append(version)
        if weight == 1:
            history.pin(version, by="test")
    kept = [stored.version for stored in history.versions()]
    assert kept[:KEPT_VERSIONS] == versions[: -KEPT_VERSIONS - 1 : -1]
    assert set(kept) == {versions[0], *versions[-KEPT_VERSIONS:]}


def test_workers_that_record_at_once_leave_whole_files_and_lines(history):
    threads = [
        threading.Thread(target=lambda: [history.record(files(weight)) for weight in range(1, 6)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(audit_lines(history)) == 20
    assert len([history.files_of(stored.version) for stored in history.versions()]) == 5
    assert not [file for file in (history.folder / "versions").iterdir() if file.name.startswith(".")]


def test_what_is_not_stored_or_damaged_is_refused_and_never_served(history, tmp_path):
    version = history.record(files(1))
    with pytest.raises(HistoryError, match="version: got 'ffffffff', which 0 versions start with"):
        history.resolve("ffffffff")
    with pytest.raises(HistoryError, match="want one of"):
        history.resolve("")
    with pytest.raises(HistoryError, match="want a stored version"):
        history.pin(f"sha256:{'0' * 64}", by="test")
    with pytest.raises(HistoryError, match="want sha256: and 64 hex digits"):
        history.pin("../../etc/passwd", by="test")
    (history.folder / "versions" / f"{version[7:]}.json").write_text(json.dumps({"f.yaml": "default: a"}))
    with pytest.raises(HistoryError, match="a damaged file"):
        history.files_of(version)
    other = {name: data.decode() for name, data in files(2).items()}
    (history.folder / "versions" / f"{version[7:]}.json").write_text(json.dumps(other))
    with pytest.raises(HistoryError, match="content of sha256"):
        history.files_of(version)
    (history.folder / "pin.json").write_text("{")
    with pytest.raises(HistoryError, match=r"pin\.json"):
        history.read(tmp_path)
