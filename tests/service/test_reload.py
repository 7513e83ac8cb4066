"""Models and config that change while the service runs."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from bundle.manifest import write_manifest
from fusion.history import History
from fusion.signals import Probabilities
from service.errors import ModelsMissing
from service.metrics import Metrics
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving


@pytest.fixture
def places(tmp_path, make_bundle, fusion_file) -> tuple[Path, Path]:
    make_bundle(tmp_path / "models" / "tiny" / "1")
    (tmp_path / "fusion").mkdir()
    shutil.copy(fusion_file, tmp_path / "fusion" / "fusion.yaml")
    return tmp_path / "models", tmp_path / "fusion" / "fusion.yaml"


@pytest.fixture
def reloader(places) -> Reloader:
    settings = Settings(models=places[0], fusion=places[1])
    made = Reloader(settings, Metrics(CollectorRegistry()), Serving())
    made.load()
    return made


def value(reloader: Reloader, name: str, **labels: str) -> float | None:
    return reloader._metrics.registry.get_sample_value(name, labels)


def serving(reloader: Reloader) -> tuple[int, float]:
    """Version of the model and weight of `like` that serve."""
    snapshot = reloader._serving.choose(None)
    policy = snapshot.fusion.policies["feed"].policy
    return snapshot.model.version, policy.weights["like"]  # type: ignore[union-attr]


def weigh(file: Path, like: float) -> str:
    """The config's text with another weight of `like`."""
    return file.read_text().replace("like: 3.0", f"like: {like}")


def test_a_changed_config_is_taken_over_and_its_old_version_is_no_longer_shown(reloader, places):
    old = reloader.config.version
    places[1].write_text(weigh(places[1], 4))
    reloader.look()
    assert serving(reloader) == (1, 4.0)
    assert value(reloader, "dlen_config_info", version=old) is None
    assert value(reloader, "dlen_config_info", version=reloader.config.version) == 1


@pytest.mark.parametrize(
    "broken",
    ["", "policies: [", "default: none\npolicies: {}", "{text}\nnoise: 1", "{likes}"],
    ids=["empty", "no yaml", "no policy", "unknown key", "a task that the model lacks"],
)
def test_a_bad_config_is_counted_once_and_the_last_good_one_stays(reloader, places, broken):
    good = places[1].read_text()
    likes = good.replace("like:", "likes:")
    places[1].write_text(broken.replace("{text}", good).replace("{likes}", likes))
    for _ in range(3):
        reloader.look()
    assert serving(reloader) == (1, 3.0)
    assert value(reloader, "dlen_last_reload_successful", kind="config") == 0
    metric = next(m for m in reloader._metrics.registry.collect() if m.name == "dlen_load_failures")
    assert sum(sample.value for sample in metric.samples) == 1
    places[1].write_text(good)
    reloader.look()
    assert value(reloader, "dlen_last_reload_successful", kind="config") == 1


def test_a_config_that_goes_away_leaves_the_last_good_one(reloader, places):
    places[1].unlink()
    reloader.look()
    assert serving(reloader) == (1, 3.0)
    assert value(reloader, "dlen_last_reload_successful", kind="config") == 0


def test_a_config_that_is_still_being_written_is_not_believed(reloader, places, monkeypatch):
    """A prefix of a config may be a valid config; it is only taken over when it stays."""
    text = places[1].read_text() + "test_users: [anna]\n"

    def finish() -> None:
        time.sleep(0.02)
        places[1].write_text(text)

    published = []
    publish = reloader._serving.publish
    monkeypatch.setattr(
        reloader._serving,
        "publish",
        lambda *snapshots: (published.append(snapshots[0].fusion.config.test_users), publish(*snapshots)),
    )
    places[1].write_text(text[: text.rindex("test_users")] + "\n")
    thread = threading.Thread(target=finish)
    thread.start()
    reloader.look()
    thread.join()
    assert reloader.config.test_users == ("anna",)
    assert published == [("anna",)]


def test_a_newer_version_takes_over_and_models_that_go_away_stay(reloader, places, make_bundle):
    make_bundle(places[0] / "tiny" / "2", seed=2)
    reloader.look()
    assert serving(reloader) == (2, 3.0)
    assert value(reloader, "dlen_model_info", model="tiny", version="1") is None
    shutil.rmtree(places[0])
    reloader.look()
    assert serving(reloader) == (2, 3.0)


def test_a_version_that_serves_no_more_is_let_go_of_at_once(reloader, places, make_bundle):
    old = weakref.ref(reloader._serving.choose(None).model.engine)
    gc.disable()  # by itself it looks rarely
    try:
        make_bundle(places[0] / "tiny" / "2", seed=2)
        reloader.look()
        assert serving(reloader)[0] == 2
        assert old() is None
    finally:
        gc.enable()


def test_of_many_versions_only_the_last_two_show_distributions(reloader, places, make_bundle):
    def shown(version: int) -> bool:
        labels = {"model": "tiny", "version": str(version), "task": "click", "bin": "0.5"}
        return value(reloader, "dlen_model_probabilities_total", **labels) is not None

    for version in (2, 3, 4):
        make_bundle(places[0] / "tiny" / str(version), seed=version)
        reloader.look()
    assert [shown(version) for version in (1, 2, 3, 4)] == [False, False, True, True]
    shutil.rmtree(places[0] / "tiny" / "4")
    make_bundle(places[0] / "tiny" / "5", seed=5)
    reloader.look()
    assert [shown(version) for version in (3, 4, 5)] == [False, True, True]


def test_a_version_written_slowly_serves_once_it_is_whole(reloader, places, make_bundle, tmp_path):
    whole = make_bundle(tmp_path / "whole", seed=4)
    part = places[0] / "tiny" / "2"
    part.mkdir()
    for name in ("manifest.json", "features.json", "golden.npz", "model.onnx", "manifest.sha256"):
        reloader.look()
        assert serving(reloader) == (1, 3.0)
        assert value(reloader, "dlen_last_reload_successful", kind="model") == 0
        shutil.copy(whole / name, part / name)
    reloader.look()
    assert serving(reloader) == (2, 3.0)
    assert value(reloader, "dlen_last_reload_successful", kind="model") == 1


def test_a_version_that_cannot_be_read_is_refused_by_name(reloader, places, make_bundle, monkeypatch):
    def unreadable(folder: Path, trusted: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "model.onnx"))

    monkeypatch.setattr("service.models.read_bundle", unreadable)
    make_bundle(places[0] / "tiny" / "2")
    reloader.look()
    assert serving(reloader) == (1, 3.0)
    assert value(reloader, "dlen_load_failures_total", kind="model", reason="FileMissing") == 1


def test_a_look_that_fails_is_counted_and_not_the_last_one(places, monkeypatch):
    settings = Settings(models=places[0], fusion=places[1], reload_seconds=0.01)
    made = Reloader(settings, Metrics(CollectorRegistry()), Serving())
    made.load()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        raise KeyError("a bug")

    monkeypatch.setattr(made, "look_at_config", look)
    made.start()
    give_up = time.monotonic() + 10
    while looks < 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    made.stop()
    assert looks >= 3
    assert (value(made, "dlen_load_failures_total", kind="look", reason="KeyError") or 0) >= 3


def test_nothing_at_the_start_is_an_error(places, tmp_path):
    (tmp_path / "none").mkdir()
    settings = Settings(models=tmp_path / "none", fusion=places[1])
    with pytest.raises(ModelsMissing):
        Reloader(settings, Metrics(CollectorRegistry()), Serving()).load()


def rename(file: Path, text: str) -> None:
    aside = file.with_name(".aside")
    aside.write_text(text)
    aside.replace(file)


def with_state(places, tmp_path) -> Reloader:
    settings = Settings(models=places[0], fusion=places[1], fusion_state=tmp_path / "state")
    made = Reloader(settings, Metrics(CollectorRegistry()), Serving())
    made.load()
    return made


def test_a_pin_serves_what_it_names_from_the_first_request_of_a_new_worker_too(places, tmp_path):
    made = with_state(places, tmp_path)
    first = made.config.version
    places[1].write_text(weigh(places[1], 4))
    made.look()
    assert serving(made) == (1, 4.0)
    history = History(tmp_path / "state")
    assert [stored.version for stored in history.versions()] == [made.config.version, first]
    history.pin(first, by="test")
    made.look()
    assert serving(made) == serving(with_state(places, tmp_path)) == (1, 3.0)
    history.unpin(by="test")
    made.look()
    assert serving(made) == (1, 4.0)


def test_a_pin_that_does_not_read_leaves_what_serves_and_is_counted_once(places, tmp_path):
    made = with_state(places, tmp_path)
    (tmp_path / "state" / "pin.json").write_text("{")
    for _ in range(3):
        made.look()
    assert serving(made) == (1, 3.0)
    assert value(made, "dlen_load_failures_total", kind="config", reason="HistoryError") == 1
    History(tmp_path / "state").unpin(by="test")
    places[1].write_text(weigh(places[1], 4))
    made.look()
    assert serving(made) == (1, 4.0)


def test_a_state_folder_that_cannot_be_written_is_counted_and_stops_nothing(places, tmp_path):
    (tmp_path / "state").write_text("a file, not a folder")
    made = with_state(places, tmp_path)
    places[1].write_text(weigh(places[1], 4))
    made.look()
    assert serving(made) == (1, 4.0)
    assert value(made, "dlen_load_failures_total", kind="history", reason="HistoryError") == 2
    assert value(made, "dlen_last_reload_successful", kind="config") == 1


def test_a_model_that_loads_slowly_does_not_hold_up_a_config(places, make_bundle, monkeypatch):
    made = Reloader(
        Settings(models=places[0], fusion=places[1], reload_seconds=0.01), Metrics(CollectorRegistry()), Serving()
    )
    made.load()
    loading, go_on = threading.Event(), threading.Event()
    load = made.repository._load

    def slowly(*arguments):
        loading.set()
        assert go_on.wait(20)
        return load(*arguments)

    monkeypatch.setattr(made.repository, "_load", slowly)
    made.start()
    try:
        make_bundle(places[0] / "tiny" / "2", seed=2)
        assert loading.wait(20)
        rename(places[1], weigh(places[1], 4))
        wait_for(lambda: serving(made) == (1, 4.0))
        go_on.set()
        wait_for(lambda: serving(made) == (2, 4.0))
    finally:
        go_on.set()
        made.stop()


def wait_for(met: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not met():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_a_policy_that_asks_for_it_is_calibrated_as_the_manifest_says(places):
    file = places[0] / "tiny" / "1" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["tasks"][0]["calibration"] = {"temperature": 2.0, "offset": 1.0}
    write_manifest(file.parent, json.dumps(manifest).encode())
    policy = "formula: weighted_sum, signal: marginal, weights: {click: 1.0}"
    places[1].write_text(f"default: a\npolicies:\n  a: {{{policy}}}\n  b: {{{policy}, calibrate: true}}\n")
    made = Reloader(Settings(models=places[0], fusion=places[1]), Metrics(CollectorRegistry()), Serving())
    made.load()
    p = np.full((1, 3), 0.3, np.float32)
    scores = {
        name: policy.rank(Probabilities(p, p, p[:, 0])).score_N[0]
        for name, policy in made._serving.choose(None).fusion.policies.items()
    }
    logit = np.log(0.3 / 0.7)
    assert scores == pytest.approx({"a": 0.3, "b": 1 / (1 + np.exp(-(logit / 2 + 1)))}, rel=1e-6)
