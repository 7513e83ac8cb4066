"""How a service starts, refuses to start, and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from service.sockets import open_socket


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def refused_start(*arguments: str, **environment: str) -> str:
    """Run `dlen serve`, expecting exit code 2 and one line on stderr that is no log line; return that line."""
    done = cli("serve", "--port", "0", "--metrics-port", "0", *arguments, **environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("dlen: ")]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_one_flipped_byte_in_a_bundle_is_refused(tmp_path, make_bundle, fusion_file):
    folder = make_bundle(tmp_path / "models" / "tiny" / "1")
    model = folder / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    line = refused_start("--models", str(tmp_path / "models"), "--fusion", str(fusion_file))
    assert "model.onnx: got sha256" in line and "want sha256" in line


def test_a_model_that_does_not_reproduce_its_golden_outputs_is_refused(tmp_path, make_bundle, fusion_file):
    make_bundle(tmp_path / "models" / "tiny" / "1", golden_error=0.01)
    line = refused_start("--models", str(tmp_path / "models"), "--fusion", str(fusion_file))
    assert "golden output" in line and "off by 0.01" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--models", "nowhere"], "models folder nowhere: got no such folder"),
        (["--models", "{empty}"], "got no model in it"),
        (["--models", "{models}", "--model", "other"], "model 'other'"),
        (["--models", "{models}", "--version", "7"], "model 'tiny': got no such version"),
        (["--models", "{models}", "--workers", "many"], "--workers: setting 'workers': got 'many'"),
        (["--models", "{models}", "--fusion", "nowhere.yaml"], "nowhere.yaml"),
        (["--models", "{models}", "--host", "203.0.113.1"], "port 203.0.113.1:0"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(tmp_path, models_folder, fusion_file, arguments, expected):
    (tmp_path / "empty").mkdir()
    given = [a.format(models=models_folder, empty=tmp_path / "empty") for a in arguments]
    if "--fusion" not in given:
        given += ["--fusion", str(fusion_file)]
    assert expected in refused_start(*given)


def test_a_policy_for_a_task_that_the_model_lacks_is_refused(tmp_path, models_folder, fusion_file):
    file = tmp_path / "fusion.yaml"
    file.write_text(fusion_file.read_text().replace("like: 3.0", "likes: 3.0"))
    assert "likes" in refused_start("--models", str(models_folder), "--fusion", str(file))


def test_several_workers_that_may_not_start_end_the_supervisor(tmp_path, models_folder, fusion_file):
    file = tmp_path / "fusion.yaml"
    file.write_text("default: nothing")
    done = cli(
        "serve", "--models", str(models_folder), "--fusion", str(file), "--workers", "2", "--port", "0",
        "--metrics-port", "0",
    )  # fmt: skip
    assert done.returncode == 2
    assert "dlen: error:" in done.stderr and "Traceback" not in done.stderr


def test_settings_come_from_flags_then_environment_then_file(serve, tmp_path, body):
    file = tmp_path / "service.yaml"
    file.write_text("max_candidates: 3\nmax_body_bytes: 5000\n")
    service = serve("--settings", str(file), DLEN_MAX_CANDIDATES="4")
    assert service.rank({**body, "candidates": body["candidates"][:4]}).status_code == 200
    assert service.rank(body).status_code == 422
    assert service.rank({**body, "request_id": "x" * 6000}).status_code == 413


def test_requests_in_flight_and_in_the_drain_window_are_answered(serve, body):
    service = serve(DLEN_DRAIN_SECONDS="1.0", DLEN_QUEUE_MS="10000")
    statuses: list[int] = []
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(timeout=10) as client:
            while not stop.is_set():
                try:
                    statuses.append(client.post(f"{service.url}/v1/rank", json=body).status_code)
                except httpx.ConnectError:
                    return  # stopped for good: no request of ours was taken and lost

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert service.get("/readyz").status_code == 503
    assert service.get("/healthz").status_code == 200
    assert service.rank(body).status_code == 200
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    service.client.close()
    assert service.process.wait(15) == 0
    assert {200} == set(statuses) and len(statuses) > 10


def test_a_request_that_is_computing_when_the_window_ends_is_answered(serve, make_body):
    service = serve(DLEN_DRAIN_SECONDS="0")
    answers: list[int] = []

    def send() -> None:
        answers.append(service.rank(make_body(2000)).status_code)

    thread = threading.Thread(target=send)
    thread.start()
    give_up = time.monotonic() + 5
    while service.metric("dlen_rank_in_flight") == 0 and thread.is_alive() and time.monotonic() < give_up:
        pass
    service.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers == [200]


def test_workers_share_the_port_and_their_metrics_add_up(serve, body):
    service = serve("--workers", "2", DLEN_DRAIN_SECONDS="0")
    labels = {"route": "/v1/rank", "status": "200"}
    for _ in range(40):
        with httpx.Client() as client:
            assert client.post(f"{service.url}/v1/rank", json=body).status_code == 200
    assert service.metric("dlen_http_requests_total", **labels) == 40
    assert service.metric("dlen_model_info", model="tiny", version="1") == 1


def test_a_killed_worker_is_replaced_and_its_counts_stay(serve, body):
    service = serve("--workers", "2", DLEN_DRAIN_SECONDS="0", DLEN_MAX_IN_FLIGHT="2")
    for _ in range(20):
        with httpx.Client() as client:
            client.post(f"{service.url}/v1/rank", json=body)
    before = service.metric("dlen_http_requests_total", route="/v1/rank")
    pids = service.worker_pids()
    os.kill(pids[0], signal.SIGKILL)
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        now = service.worker_pids()
        if len(now) == 2 and pids[0] not in now and service.log.read_text().count("serving on") == 3:
            break
        time.sleep(0.1)
    assert len(service.worker_pids()) == 2
    with httpx.Client() as client:
        assert client.post(f"{service.url}/v1/rank", json=body).status_code == 200
    assert before + 1 == service.metric("dlen_http_requests_total", route="/v1/rank")
    assert service.metric("dlen_rank_in_flight_limit") == 4
    assert service.metric("dlen_worker_restarts_total") == 1
    assert service.metric("dlen_event_loop_lag_seconds_count") > 0


def test_a_worker_that_dies_under_a_bad_config_comes_back_once_it_is_good(serve, body, tmp_path, fusion_file):
    config = tmp_path / "fusion.yaml"
    config.write_text(fusion_file.read_text())
    service = serve("--workers", "2", fusion=config, DLEN_DRAIN_SECONDS="0")
    wait_for_log(service, r"(?s)(serving on.*){2}")  # ready is one worker; a bad config at the other's start ends all
    config.write_text(fusion_file.read_text().replace("like:", "likes:"))
    os.kill(service.worker_pids()[0], signal.SIGKILL)
    wait_for_log(service, r"ended with 2 \(.*likes")
    with httpx.Client() as client:
        assert client.post(f"{service.url}/v1/rank", json=body).status_code == 200
    config.write_text(fusion_file.read_text())
    wait_for_log(service, r"(?s)(serving on.*){3}")
    assert len(service.worker_pids()) == 2
    assert service.process.poll() is None


def wait_for_log(service, pattern: str) -> None:
    give_up = time.monotonic() + 30
    while not re.search(pattern, service.log.read_text()):
        assert time.monotonic() < give_up and service.process.poll() is None, service.log.read_text()
        time.sleep(0.05)


def test_workers_do_not_outlive_their_supervisor(serve, body):
    service = serve("--workers", "2", DLEN_DRAIN_SECONDS="0")
    pids = service.worker_pids()
    assert len(pids) == 2
    service.process.kill()
    service.process.wait()
    give_up = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def test_a_single_process_goes_on_when_the_shell_that_started_it_ends(tmp_path, models_folder, fusion_file):
    log = tmp_path / "log"
    command = (
        f"{sys.executable} -m cli serve --models {models_folder} --fusion {fusion_file} --port 0 --metrics-port 0"
        f" >{log} 2>&1 & echo $!"
    )
    shell = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    pid = int(shell.stdout)
    try:
        give_up = time.monotonic() + 40
        while "serving on" not in log.read_text() and time.monotonic() < give_up:
            time.sleep(0.05)
        time.sleep(0.5)
        url = re.search(r"serving on ([^\s,]+),", log.read_text())[1]
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_serving_never_imports_torch_or_what_trains():
    code = (
        "import sys, json, service.supervisor, service.commands, service.app, service.show, service.inventory;"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('torch', 'training', 'model_export')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_socket_refuses_connections_until_a_worker_has_loaded():
    """A proxy then asks another replica at once instead of waiting on one that is still starting."""
    opened = open_socket("127.0.0.1", 0)
    try:
        with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(opened.getsockname())
    finally:
        opened.close()
