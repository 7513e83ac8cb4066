import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from cli import main
from loadtest.errors import KitInvalid, PeerUnknown
from loadtest.peers import process
from loadtest.peers.catalogue import PEERS, Server, chosen, services
from loadtest.peers.kit import read_kit
from loadtest.peers.process import running
from loadtest.peers.rounds import Figure, Key, Results, Settings, measure_servers
from loadtest.peers.show import comparison_document, comparison_tables, line_of, plot_lines, plot_peers, ratios
from loadtest.peers.wires import json_lists, of_peer, p_of_bytes, p_of_lists, p_of_v2, uploaded, v2_binary, v2_json

SERVER = Path(__file__).with_name("peer_server.py")
CORE = min(os.sched_getaffinity(0))
SETTINGS = Settings(rounds=2, duration_s=0.2, warmup_s=0.05, server_core=CORE, client_core=CORE)


def peer(mode: str) -> Server:
    wire = of_peer("JSON", "/", json_lists, p_of_lists)
    return Server(f"peer that will {mode}", lambda start: [sys.executable, str(SERVER), mode], (wire,))


@pytest.fixture
def kit(tmp_path):
    described = {"candidates": [3, 5], "tasks": ["click", "like"], "codes": 4, "request_codes": 3}
    (tmp_path / "kit.json").write_text(json.dumps(described))
    for count in (3, 5):
        codes = np.random.default_rng(count).integers(0, 99, size=(2, count, 4)).astype(np.int32)
        np.savez(tmp_path / f"inputs-{count}.npz", codes=codes, p=codes[0, :, :2].astype(np.float32) / 100)
    return read_kit(tmp_path)


def test_a_server_is_measured_in_rounds_at_every_n(kit):
    results = measure_servers(kit, [peer("serve")], [3, 5], SETTINGS, lambda _: None)
    assert results.skipped == {}
    assert {(key.wire, key.candidates): len(rounds) for key, rounds in results.figures.items()} == {
        ("JSON", 3): 2,
        ("JSON", 5): 2,
    }
    assert all(figure.requests_per_s > 0 for rounds in results.figures.values() for figure in rounds)
    assert results.largest_error == {"peer that will serve, JSON": 0.0}


def test_a_bare_loop_runs_each_graph_that_it_has_and_tells_how_far_off_it_is(kit):
    loop = SERVER.with_name("peer_loop.py")
    server = Server(
        "loop", lambda start: [sys.executable, str(loop)], (), graphs=("plain", "plain-off", "fp32", "int8")
    )
    results = measure_servers(kit, [server], [3, 5], SETTINGS, lambda _: None)
    assert results.skipped == {}
    wires = ("plain graph", "plain in off graph", "fp32 graph")
    assert {(key.wire, key.candidates): len(rounds) for key, rounds in results.figures.items()} == {
        (wire, count): 2 for wire in wires for count in (3, 5)
    }
    assert all(figure.requests_per_s > 0 for rounds in results.figures.values() for figure in rounds)
    assert results.largest_error["loop, plain graph"] == 0
    assert results.largest_error["loop, plain in off graph"] == pytest.approx(0.5)


def test_servers_that_fail_or_err_are_named_with_the_reason_and_the_others_measured(kit):
    servers = [peer("fail"), peer("wrong"), peer("serve"), *services()]
    results = measure_servers(kit, servers, [3], Settings(1, 0.1, 0.0, 1, CORE, CORE), lambda _: None)
    assert {key.server for key in results.figures} == {"peer that will serve"}
    assert "the weights are nowhere" in results.skipped["peer that will fail"]
    assert "P(task) off by 0.5" in results.skipped["peer that will wrong"]
    assert "no models folder items/" in results.skipped["dlen int8, item cache"]


def test_nothing_is_left_of_a_server_nor_of_what_it_started(kit):
    with running(peer("fork"), kit, CORE) as started:
        started.wait_until_listening()
        assert len(started._pids()) == 2
    assert started._pids() == []
    with pytest.raises(KeyboardInterrupt), running(peer("fork"), kit, CORE) as interrupted:
        raise KeyboardInterrupt
    assert interrupted._pids() == []


def test_a_missing_environment_is_named_with_what_its_installation_said(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".peers").mkdir()
    (tmp_path / ".peers" / "triton.failed").write_text("no /usr/bin/python3.11 here")
    results = measure_servers(kit, chosen("triton,ray"), [3], SETTINGS, lambda _: None)
    assert results.skipped["Triton"].startswith("no /usr/bin/python3.11 here")
    assert results.skipped["Ray Serve"].startswith("not installed")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_server_and_pinned_packages_without_torch(peer):
    folder = Path(process.__file__).parent / peer.peer
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert (folder / "serve.py").exists()
    assert all("==" in line for line in lines)
    assert not any(line.startswith("torch") for line in lines)
    assert any(line.startswith(("onnxruntime==", "openvino==")) for line in lines)


def test_arrays_survive_each_wire():
    codes = np.arange(12, dtype=np.int32).reshape(3, 4)
    headers, body = v2_binary(codes)
    head = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
    assert head["inputs"][0]["shape"] == [3, 4]
    assert body.endswith(codes.tobytes())
    assert json.loads(v2_json(codes)[1])["inputs"][0]["data"] == list(range(12))
    assert codes.tobytes() in uploaded(codes)[1]


def test_p_is_read_from_json_bytes_and_binary_tensors(kit):
    p_NT = np.array([[0.5, 0.25], [0.75, 0.125], [1, 0]], np.float32)
    up = np.zeros(3, np.float32)
    tensor = {"name": "p", "datatype": "FP32", "shape": [3, 2]}
    outputs = [{"name": "p_up", "parameters": {"binary_data_size": up.nbytes}}]
    head = json.dumps({"outputs": [*outputs, tensor | {"parameters": {"binary_data_size": p_NT.nbytes}}]}).encode()
    as_json = json.dumps({"outputs": [tensor | {"data": p_NT.ravel().tolist()}]}).encode()
    told = {"inference-header-content-length": str(len(head))}
    assert (p_of_v2(kit, 3, head + up.tobytes() + p_NT.tobytes(), told) == p_NT).all()
    assert (p_of_v2(kit, 3, as_json, {}) == p_NT).all()
    assert (p_of_bytes(kit, 3, p_NT.tobytes() + up.tobytes(), {}) == p_NT).all()


@pytest.fixture
def results():
    """This service twice as fast as MLServer, CPU 1 + N/100 ms, the bare loop's N/100."""
    found = Results(skipped={"Triton": "not installed"})
    for count in (20, 100, 500):
        cpu_ms = 1 + count / 100
        found.figures[Key("dlen fp32", "JSON rows", count)] = [Figure(r * 2e3 / cpu_ms, cpu_ms) for r in (1, 1.1)]
        found.figures[Key("MLServer", "V2 JSON", count)] = [Figure(r * 1e3 / cpu_ms, 3 * cpu_ms) for r in (1, 1)]
        found.figures[Key("BentoML", "JSON", count)] = [Figure(1, 100), Figure(1, 100)]
        loop = Key("ONNX Runtime, no server", "fp32 graph", count)
        found.figures[loop] = [Figure(1e6, count / 100), Figure(1e6, count / 100)]
    return found


def test_ratios_are_to_the_fastest_peer_round_by_round(results):
    found = ratios(results, 100)["dlen fp32, JSON rows"]
    assert found["best_peer"] == "MLServer, V2 JSON"
    assert found["requests_per_s_by_round"] == pytest.approx([2, 2.2])
    assert found["cpu"] == pytest.approx(3)


def test_who_does_the_whole_job_is_compared_apart(results):
    whole = Key("MLServer", "JSON rows, whole job in a custom handler", 100)
    results.figures[whole] = [Figure(5000, 4), Figure(5000, 4)]
    assert ratios(results, 100)["dlen fp32, JSON rows"]["best_peer"] == "MLServer, V2 JSON"
    found = ratios(results, 100, whole_job=True)["dlen fp32, JSON rows"]
    assert found["best_peer"] == "MLServer, JSON rows, whole job in a custom handler"
    assert found["requests_per_s_by_round"] == pytest.approx([0.2, 0.22])
    assert len(comparison_tables(results, [100])) == 3
    assert comparison_document(results, [100], SETTINGS)["against_whole_job"]["100"].keys() == {"dlen fp32, JSON rows"}


def test_the_line_and_what_lies_outside_the_runtime_are_found(results):
    line = line_of(results, "dlen fp32", "JSON rows")
    assert line == pytest.approx({"fixed_ms": 1, "ms_per_1000": 10, "r2": 1})
    document = comparison_document(results, [20, 100, 500], SETTINGS)
    outside = [f["outside_onnxruntime_ms"] for f in document["figures"] if f["server"] == "dlen fp32"]
    assert outside == pytest.approx([1, 1, 1])
    assert document["skipped"] == {"Triton": "not installed"}


def test_tables_and_pictures_show_what_was_measured_and_skipped(results):
    rates, against = comparison_tables(results, [20, 100, 500])
    assert rates.row_count == 5
    assert against.row_count == 1
    for picture in (plot_peers(results, [20, 100, 500]), plot_lines(results)):
        assert picture.startswith(b"\x89PNG")


def test_bad_input_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(PeerUnknown, match="torchserve"):
        chosen("mlserver,torchserve")
    with pytest.raises(KitInvalid):
        read_kit(tmp_path)
    for options in (["--peers", "all"], ["--peers", "nobody"], ["--url", "http://127.0.0.1:1"]):
        assert main(["loadtest", "compare", *options]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
