"""Log lines: what they hold, which requests have one, and that nobody waits for them to be written."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.logs import JsonLines, LineWriter, TextLines, fields
from service.metrics import Metrics
from service.observe import is_sampled, must_log, note_answer
from service.record import Record
from service.straight import Answering

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
CONFIG = """
format: 1
default: feed
policies:
  feed: {formula: weighted_sum, weights: {click: 1.0, like: 3.0}, p_up: 0.5}
layers:
  - name: ranking
    experiments:
      - name: e
        variants: [{name: a, weight: 0.5}, {name: b, weight: 0.5}]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory, models_folder, start_service):
    folder = tmp_path_factory.mktemp("logs")
    (folder / "fusion.yaml").write_text(CONFIG)
    started = start_service(
        folder, models_folder, folder / "fusion.yaml", DLEN_LOG_SAMPLE="0.5", DLEN_DRAIN_SECONDS="0"
    )
    yield started
    started.stop()


def test_a_requests_line_tells_who_answered_how_and_how_long_each_stage_took(service, body):
    body["request_id"] = next(f"r-{n}" for n in range(99) if is_sampled(f"r-{n}", 0.5))
    answer = service.rank(body, traceparent=TRACEPARENT)
    assert answer.headers["traceparent"] == TRACEPARENT
    (line,) = service.lines("service.requests", wanted=1, request_id=body["request_id"])
    assert line["message"] == "POST /v1/rank 200"
    assert set(line["stages_ms"]) == {"parse", "features", "predict", "fuse", "respond"}
    assert 0 < sum(line["stages_ms"].values()) < line["duration_ms"]
    expected = {
        "level": "info", "status": 200, "candidates": 5, "model": "tiny", "model_version": "1", "trace_id": TRACE_ID,
        "config_version": answer.json()["config_version"], "assignments": answer.json()["assignments"],
    }  # fmt: skip
    assert expected.items() <= line.items() and "degraded" not in line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


def test_of_good_requests_a_share_is_logged_chosen_by_id_and_of_bad_ones_each(service, body):
    ids = [f"s-{number}" for number in range(40)]
    for request_id in ids:
        service.rank({**body, "request_id": request_id})
        service.rank({**body, "request_id": f"bad-{request_id}", "top_k": -1}, **{"x-request-id": f"bad-{request_id}"})
    assert service.lines("service.requests", wanted=40, status=422)
    logged = [line["request_id"] for line in service.lines("service.requests")]
    assert [i for i in logged if i.startswith("s-")] == [i for i in ids if is_sampled(i, 0.5)]
    assert [i for i in logged if i.startswith("bad-")] == [f"bad-{i}" for i in ids]
    (line,) = service.lines("service.requests", request_id="bad-s-7")
    assert line["problem"] == "body-malformed" and "$.top_k" in line["error"]


def test_probes_have_no_line_and_other_failures_do(service):
    service.get("/readyz")
    service.get("/nowhere/secret-path")
    assert service.lines("service.requests", wanted=1, status=404)
    text = service.log.read_text()
    assert "readyz" not in text and "secret-path" not in text


def test_exposures_are_lines_of_their_own_with_fields(service, body):
    service.rank({**body, "request_id": "seen"})
    (line,) = service.lines("service.exposures", wanted=1, request_id="seen")
    assert line["exposures"][0]["experiment"] == "e" and line["user_id"] == "u1"


@pytest.mark.parametrize(
    "bad", ["", "x", "ff-" + TRACEPARENT[3:], "00-" + "0" * 32 + TRACEPARENT[35:], TRACEPARENT[:-1]]
)
def test_a_trace_context_that_does_not_read_is_not_passed_on(service, body, bad):
    assert "traceparent" not in service.rank(body, traceparent=bad).headers
    assert Record(Metrics(CollectorRegistry()), bad).trace_id is None


@pytest.mark.parametrize("prefix", ["", "r-", "0af7651916cd43dd8448eb211c8"])
def test_a_sample_by_id_has_the_wanted_size_and_grows_with_the_share(prefix):
    ids = [f"{prefix}{number}" for number in range(2000)]
    few, many = ({i for i in ids if is_sampled(i, share)} for share in (0.05, 0.2))
    assert few <= many
    assert 30 < len(few) < 200 and 250 < len(many) < 550
    assert not any(is_sampled(i, 0.0) for i in ids) and all(is_sampled(i, 1.0) for i in ids)


def test_failed_and_degraded_requests_are_always_logged_and_shed_ones_are_sampled():
    def record(**values: Any) -> Record:
        return Record(Metrics(CollectorRegistry()), request_id="r", **values)

    assert not must_log(record(), 200, 0.0)
    assert must_log(record(degraded="overrun"), 200, 0.0)
    assert must_log(record(problem="body-malformed"), 422, 0.0)
    assert must_log(record(problem="model-failed"), 500, 0.0)
    assert not must_log(record(problem="overloaded"), 503, 0.0)
    assert must_log(record(problem="overloaded"), 503, 1.0)


def test_an_answered_request_keeps_no_model():
    """Connections that idle keep their last request; it must not keep a model version that serves no more."""
    made: Any = SimpleNamespace(metrics=Metrics(CollectorRegistry()))
    record = Record(made.metrics, snapshot=made, ranking=made)
    note_answer(record, record.metrics, 0.0, "/v1/rank", "POST", 200, 0.001)
    assert record.snapshot is None and record.ranking is None
    answering = Answering(made, made, keep_alive=True)
    known = weakref.ref(answering)
    gc.disable()
    try:
        del answering
        assert known() is None, "a cycle of references, which only the collector ends"
    finally:
        gc.enable()


def test_a_full_pipe_blocks_no_request_and_what_is_lost_is_counted(models_folder, tmp_path, body):
    """Nobody reads stderr after the start: pipe and queue fill, requests go on, and later lines are whole."""
    (tmp_path / "fusion.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "cli", "serve", "--models", str(models_folder), "--fusion"]
    command += [str(tmp_path / "fusion.yaml"), "--port", "0", "--metrics-port", "0"]
    environment = {"OMP_NUM_THREADS": "1", "DLEN_WORKERS": "1", "DLEN_LOG_SAMPLE": "1", "DLEN_LOG_BUFFER_BYTES": "8192",
                   "DLEN_DRAIN_SECONDS": "0"}  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **environment})
    assert process.stderr is not None
    try:
        found = None
        while found is None:
            found = re.search(
                r"serving on (http://[\w.:]+), metrics on (http://[\w.:]+)", process.stderr.readline().decode()
            )
        with httpx.Client(timeout=10) as client:

            def send(number: int) -> int:
                return client.post(f"{found[1]}/v1/rank", json={**body, "request_id": f"{number:0>250}"}).status_code

            statuses, dropped, sent = set(), 0.0, 0
            while dropped < 20 and sent < 2000:
                statuses |= {send(sent + extra) for extra in range(50)}
                sent += 50
                dropped = sum(map(float, re.findall(r"(?m)^dlen_log_lines_dropped_total\{.*\} (\S+)$",
                                                    client.get(f"{found[2]}/metrics").text)))  # fmt: skip
            assert (statuses, dropped >= 20) == ({200}, True)
            lines: list[bytes] = []
            reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
            reader.start()
            time.sleep(0.3)
            send(9999)
            give_up = time.monotonic() + 10
            while not any(b"9999" in line for line in lines) and time.monotonic() < give_up:
                time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        reader.join(5)
        assert f"{9999:0>250}" in {json.loads(line).get("request_id") for line in lines}
        assert len(lines) < 2 * sent
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def writer_on_a_full_pipe(limit_bytes: int) -> tuple[LineWriter, int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    writer = LineWriter(write_end, limit_bytes)
    writer.setFormatter(JsonLines())
    return writer, read_end, write_end


def line(message: str, **values: object) -> logging.LogRecord:
    record = logging.LogRecord("service.requests", logging.INFO, "f", 1, message, None, None)
    record.__dict__.update(fields(**values) if values else {})
    return record


def test_a_blocked_descriptor_holds_no_more_than_the_limit_and_ends_the_process_within_a_second_or_so():
    writer, read_end, write_end = writer_on_a_full_pipe(20_000)
    counter = Metrics(CollectorRegistry()).log_dropped
    for number in range(1000):
        if number == 500:
            writer.count_in(counter)
        writer.handle(line(f"{number:0>100}"))
    kept = writer._held_bytes
    assert 15_000 < kept <= 20_000
    dropped = counter.labels("requests")._value.get()
    assert 800 < dropped < 1000
    writer.flush()  # comes back though nothing can be written
    assert writer._held_bytes == kept
    while not os.read(read_end, 65536).startswith(b"{"):
        pass
    os.close(read_end)  # a reader that goes away is no error either
    give_up = time.monotonic() + 5
    while writer._held_bytes and time.monotonic() < give_up:
        time.sleep(0.01)
    assert writer._held_bytes == 0
    os.close(write_end)


@given(st.text(st.characters(), max_size=30), st.text(max_size=30))
def test_any_text_makes_one_line_of_json(message, value):
    document = json.loads(JsonLines().format(line(message.replace("%", ""), found=value)))
    assert (document["message"], document["found"]) == (message.replace("%", ""), value)
    strange = JsonLines().format(line("m", found="\ud800", other={1, 2}))
    assert "\n" not in strange and json.loads(strange)["level"] == "info"


def test_text_lines_are_for_people_and_tracebacks_are_kept():
    assert TextLines().format(line("POST 200", status=200)).endswith('service.requests: POST 200 {"status":200}')
    try:
        raise KeyError("k")
    except KeyError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "a bug", None, sys.exc_info())
    assert "KeyError: 'k'" in json.loads(JsonLines().format(record))["traceback"]
    assert "KeyError: 'k'" in TextLines().format(record)
