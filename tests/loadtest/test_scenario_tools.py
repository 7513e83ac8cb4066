"""What scenarios are made of: loads, forgeries, ways of swapping a file, a clock that jumps."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundle.read import read_bundle
from loadtest.errors import KitInvalid, ServerFailed
from loadtest.scenarios import (
    clock_jump,
    config_swaps,
)
from loadtest.scenarios.background import SteadyLoad
from loadtest.scenarios.bodies import widened
from loadtest.scenarios.forgeries import FORGERIES, SIGNATURE_FORGERIES, WEIGHT_FORGERIES
from loadtest.scenarios.scenario import Settings
from loadtest.scenarios.stack import command_path, until
from loadtest.scenarios.swapping import SWAPPERS


def test_bodies_are_widened_with_ids_of_their_own():
    body = json.dumps({"candidates": [{"id": "a", "features": {}}, {"id": "b"}], "top_k": 2}).encode()
    settings = Settings(Path(), Path(), (body, b'{"candidates": {"id": []}}'), Path())
    first, other = widened(settings, 7).bodies
    ids = [candidate["id"] for candidate in json.loads(first)["candidates"]]
    assert (len(ids), len(set(ids)), ids[:2]) == (7, 7, ["a", "b"])
    assert other == settings.bodies[1]


def test_a_steady_load_ends_with_its_block_and_keeps_what_was_sent(server, tmp_path):
    settings = Settings(Path(), Path(), (b"{}",), tmp_path, rate_per_s=200)
    with SteadyLoad(settings, f"{server[1]}/ok") as load:
        time.sleep(0.3)
    assert 10 < len(load.outcome.status) == len(load.outcome.send_ns) == len(load.outcome.latency_ns) < 100_000
    assert set(load.outcome.status) == {200}
    assert 0 < load.seconds(time.monotonic()) < 60


def test_a_load_that_finds_nobody_is_an_error_and_no_hang(tmp_path):
    settings = Settings(Path(), Path(), (b"{}",), tmp_path)
    with pytest.raises(ServerFailed, match="refused"), SteadyLoad(settings, "http://127.0.0.1:1"):
        pass


@pytest.mark.parametrize("forgery", [*FORGERIES, *WEIGHT_FORGERIES], ids=lambda forgery: forgery.name)
def test_each_forgery_is_refused_for_its_reason(forgery, models, tmp_path):
    from shutil import copytree

    from service.engine import Engine

    folder = copytree(models / "demo" / "1", tmp_path / "2")
    forgery.spoil(folder)
    if forgery.reason == "ConfigInvalid":  # a good bundle, for other policies
        assert read_bundle(folder).manifest.task_names[0] == "another_task_0"
        return
    with pytest.raises(Exception, match=r".") as caught:
        Engine(read_bundle(folder))
    assert type(caught.value).__name__ == forgery.reason


@pytest.mark.parametrize("forgery", SIGNATURE_FORGERIES, ids=lambda forgery: forgery.name)
def test_each_forged_signature_is_refused_for_its_reason_and_a_good_one_is_not(forgery, models, tmp_path):
    from shutil import copytree

    from bundle.signature import read_trusted_keys
    from loadtest.scenarios.signing import Signer

    signer, trusted = Signer(), tmp_path / "trusted.pem"
    trusted.write_bytes(signer.public_pem)
    good = copytree(models / "demo" / "1", tmp_path / "demo" / "1")
    signer.sign(good, "demo", "1")
    assert read_bundle(good, read_trusted_keys(trusted)).signed_by
    folder = copytree(good, tmp_path / "demo" / "2")
    forgery.spoil(folder)
    with pytest.raises(Exception, match=r"manifest\.sig") as caught:
        read_bundle(folder, read_trusted_keys(trusted))
    assert type(caught.value).__name__ == forgery.reason


@pytest.mark.parametrize("first", SWAPPERS)
def test_every_way_of_swapping_ends_with_the_whole_text(first, tmp_path):
    file = tmp_path / "fusion.yaml"
    file.write_text("old")
    for name in (first, "ConfigMap", "truncate", "ConfigMap"):
        SWAPPERS[name](file, f"new by {name}")
        assert file.read_text() == f"new by {name}"


def test_a_config_needs_a_task_that_all_bundles_have(models, tmp_path):
    assert config_swaps.common_task(models) == "click"
    with pytest.raises(KitInvalid):
        config_swaps.common_task(tmp_path)


def test_a_preloaded_library_moves_the_wall_clock_and_no_other(tmp_path):
    if command_path("cc") is None:
        pytest.skip("cc is not installed")
    offset = tmp_path / "offset"
    clock_jump.set_offset(offset, -86_400)
    assert offset.read_bytes() == struct.pack("=q", -86_400_000_000_000)
    code = "import time, datetime; print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    library = clock_jump.build(tmp_path)
    environment = {**os.environ, "LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(offset)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    wall, monotonic, named = map(float, done.stdout.split())
    assert wall - time.time() == pytest.approx(-86_400, abs=60) == named - time.time()
    assert monotonic == pytest.approx(time.monotonic(), abs=60)
    assert ctypes.CDLL(str(library)).time(None) > 0


def test_until_tells_when_and_gives_up():
    assert until(lambda: True, 1) is not None
    assert until(lambda: False, 0.05) is None
