import os
import signal
import socket
import threading
import time

import pytest

from loadtest.errors import PlanInvalid, TargetInvalid, Unreachable
from loadtest.run import Load, run_load
from loadtest.traffic import build_requests, parse_target

BODY = b'{"candidates": []}'


def run(url, **settings):
    target = parse_target(url)
    load = Load(**{"rate_per_s": 200, "duration_s": 1.0, "warmup_s": 0.2, "arrivals": "constant"} | settings)
    return run_load(target, build_requests(target, [BODY]), load)


def test_a_server_frozen_for_a_second_shows_in_the_percentiles(server):
    process, url = server

    def freeze() -> None:
        time.sleep(1)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1)  # at least, however busy the machine is
        os.kill(process.pid, signal.SIGCONT)

    freezing = threading.Thread(target=freeze)
    freezing.start()
    figures = run(url + "/ok", duration_s=4.0, warmup_s=0.0)
    freezing.join()
    assert figures.statuses == {"200": 800}
    assert 800 < figures.latency_ms["max"] < 2_500
    assert figures.latency_ms["p99"] > 700
    # 1 s of 4 s arrived while nothing was answered, at an even rate: a tenth waited 0.6 s or longer
    assert figures.latency_ms["p90"] > 400
    assert figures.latency_ms["p50"] < 300


def test_latency_is_that_of_the_server(server):
    figures = run(server[1] + "/slow/50")
    assert figures.statuses == {"200": 200}
    assert 50 <= figures.latency_ms["p50"] < 250
    assert figures.latency_ms["p50"] <= figures.latency_ms["p99"] <= figures.latency_ms["max"]


def test_waiting_for_a_free_connection_counts_as_latency(server):
    figures = run(server[1] + "/slow/20", rate_per_s=100, connections=1)
    assert figures.connections == 1
    assert figures.statuses == {"200": 100}
    assert figures.latency_ms["max"] > 500  # 100/s offered, 50/s served: the last waited about 1 s
    assert figures.achieved_rate < 60 < 95 < figures.offered_rate


def test_the_offered_rate_is_kept_and_the_warm_up_is_left_out(server):
    figures = run(server[1] + "/ok", rate_per_s=300, duration_s=1.0, warmup_s=0.5)
    assert figures.planned == 300
    assert sum(second.planned for second in figures.seconds) == 300
    assert figures.offered_rate == pytest.approx(300)


def test_errors_are_counted_by_status_and_not_as_latency(server):
    figures = run(server[1] + "/status/503")
    assert figures.statuses == {"503": 200}
    assert figures.ok == 0
    assert figures.error_share == 1
    assert not figures.valid
    assert figures.latency_ms["p99"] != figures.latency_ms["p99"]  # NaN: nothing was answered 2xx


@pytest.mark.parametrize(
    ("path", "outcome"), [("/hang", "timed out"), ("/drop", "disconnected"), ("/garbage", "disconnected")]
)
def test_a_request_without_an_answer_is_a_failure_of_its_kind(server, path, outcome):
    figures = run(server[1] + path, rate_per_s=50, timeout_s=0.3)
    assert figures.statuses == {outcome: 50}


def test_a_timed_out_request_counts_with_the_time_it_took_among_all(server):
    figures = run(server[1] + "/hang", rate_per_s=50, timeout_s=0.3)
    assert figures.all_latency_ms["p50"] >= 299


def test_a_server_that_closes_after_each_answer_gets_a_connection_for_each(server):
    figures = run(server[1] + "/once", rate_per_s=50, warmup_s=0.0)
    assert figures.statuses == {"200": 50}
    assert figures.connections == 50


def test_a_server_that_dies_under_load_ends_the_run_with_counted_failures(server):
    process, url = server
    kill = threading.Timer(1.5, process.kill)
    kill.start()
    figures = run(url + "/ok", duration_s=3.0, warmup_s=0.0, timeout_s=2.0)
    kill.join()
    assert figures.statuses["200"] > 0
    assert figures.statuses["connect failed"] > 0
    assert sum(figures.statuses.values()) == 600


def test_nothing_listening_is_refused_before_the_start():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="want a listening server"):
            run(f"http://127.0.0.1:{unused.getsockname()[1]}")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"rate_per_s": 0}, PlanInvalid),
        ({"rate_per_s": float("nan")}, PlanInvalid),
        ({"duration_s": -1}, PlanInvalid),
        ({"duration_s": float("inf")}, PlanInvalid),
        ({"warmup_s": -1}, PlanInvalid),
        ({"timeout_s": 0}, PlanInvalid),
        ({"seed": -1}, PlanInvalid),
        ({"rate_per_s": 1e9, "duration_s": 100}, PlanInvalid),
        ({"connections": 0}, TargetInvalid),
    ],
)
def test_settings_out_of_range_are_refused(settings, error):
    with pytest.raises(error):
        run("http://127.0.0.1:1", **settings)
