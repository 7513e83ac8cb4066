"""costs: what keys, logs and traces add to a request's CPU time.

Rankers that differ in one setting stand side by side on one core and are asked in turns, some seconds each, closed
loop; the ratio to the plain one of the same round is what counts, since rounds share what else the machine does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from loadtest.errors import ServerFailed
from loadtest.files import write_file
from loadtest.peers.closed_loop import drive_closed
from loadtest.processes import HOST, children
from loadtest.scenarios.changes import changed_configs, users_of
from loadtest.scenarios.cores import a_core_each
from loadtest.scenarios.overload import enough_candidates
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings, at_most
from loadtest.scenarios.stack import Ranker, command_path, nginx_in_front
from loadtest.traffic import build_requests, parse_target

KEY = "a-key-for-the-measurement-only"
PLAIN, KEYS_LOGS = "plain", "keys and logs"
MOST_PERCENT = 3.0
"""What keys and logs, as they are by default, may add."""
USERS = 64
_QUIET = {"DLEN_LOG_SAMPLE": "0", "DLEN_LOG_EXPOSURES": "false", "DLEN_LOG_LEVEL": "info"}
_LOGS = {"DLEN_LOG_SAMPLE": "0.01", "DLEN_LOG_EXPOSURES": "true", "DLEN_LOG_LEVEL": "info"}


@dataclass(frozen=True)
class Added:
    """What a variant adds to the plain one's CPU time, in per cent: median, lowest and highest of the rounds."""

    cpu_ms: float
    percent: float
    lowest: float
    highest: float


def run(settings: Settings) -> ScenarioResult:
    """Measure every variant in interleaved rounds."""
    rounds, duration_s = settings.amount(10, 2), settings.amount(20, 2) / 10
    fusion, keys = settings.folder / "fusion.yaml", settings.folder / "keys"
    write_file(fusion, changed_configs(settings.fusion.read_text(), 1)[0])
    write_file(keys, KEY.encode() + b"\n")
    bodies = users_of(enough_candidates(settings), USERS)
    cpu_ms: dict[str, list[float]] = {}
    proxied: list[float] = []
    with contextlib.ExitStack() as stack:
        cores = stack.enter_context(a_core_each())
        cores.take_for_load()
        collector = stack.enter_context(_collector())
        cores.take_for_ranker()
        rankers = {}
        for name, environment in variants(str(keys), collector).items():
            file = "".join(one if one.isalnum() else "-" for one in name)
            ranker = Ranker(settings, file, fusion=fusion, environment=environment)
            rankers[name] = stack.enter_context(ranker)
        nginx = _nginx(settings, rankers[PLAIN].port, stack) if command_path("nginx") else None
        cores.take_for_load()
        for number in range(rounds):
            names = list(rankers)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                ranker = rankers[name]
                spent_ms = _cpu_ms(ranker.url, [ranker.process.pid], bodies, duration_s)
                cpu_ms.setdefault(name, []).append(spent_ms)
            if nginx is not None:
                proxied.append(_cpu_ms(*nginx, bodies, duration_s))
            settings.say(f"round {number + 1} of {rounds}: {cpu_ms[PLAIN][-1]:.3f} ms a request, plain")
    found = added(cpu_ms)
    shown: dict[str, object] = {name: vars(one) for name, one in found.items()}
    shown |= {"nginx itself": {"cpu_ms": round(float(np.median(proxied)), 3)}} if proxied else {}
    shown |= {"body": {"bytes": round(float(np.mean([len(body) for body in bodies])))}}
    return ScenarioResult(checks(found), {"rounds": rounds, "a_core_each": cores.one_each, **shown})


def variants(keys: str, collector: str) -> dict[str, Mapping[str, str]]:
    """Return the settings that are compared, as environment, by name."""
    traces = _QUIET | {"DLEN_OTEL_ENDPOINT": collector}
    return {
        PLAIN: _QUIET,
        "keys": _QUIET | {"DLEN_KEYS_FILE": keys},
        "logs": _LOGS,
        KEYS_LOGS: _LOGS | {"DLEN_KEYS_FILE": keys},
        "every request logged": _LOGS | {"DLEN_LOG_SAMPLE": "1"},
        "traces, 1 %": traces | {"DLEN_OTEL_SAMPLE": "0.01"},
        "traces, all": traces | {"DLEN_OTEL_SAMPLE": "1"},
    }


def added(cpu_ms: Mapping[str, Sequence[float]]) -> dict[str, Added]:
    """Return what each variant adds, from CPU ms a request by round."""
    plain = np.asarray(cpu_ms[PLAIN])
    found = {}
    for name, spent in cpu_ms.items():
        percent = 100 * (np.asarray(spent) / plain - 1)
        figures = (float(np.median(spent)), float(np.median(percent)), float(percent.min()), float(percent.max()))
        found[name] = Added(*(round(figure, 3) for figure in figures))
    return found


def checks(found: Mapping[str, Added]) -> tuple[Check, ...]:
    """Judge what was added."""
    return (at_most("keys and logs add, median", found[KEYS_LOGS].percent, MOST_PERCENT, "%"),)


def _cpu_ms(url: str, pids: Sequence[int], bodies: Sequence[bytes], duration_s: float) -> float:
    """Return the CPU time of processes per request that is asked of an address."""
    target = parse_target(url, [f"Authorization: Bearer {KEY}"])
    clocks = [(~pid << 3) | 2 for pid in pids]  # Linux's CPU clocks of other processes
    answered = drive_closed(
        target.host,
        target.port,
        build_requests(target, bodies),
        connections=2,
        warmup_s=duration_s / 5,
        duration_s=duration_s,
        cpu_s=lambda: sum(map(time.clock_gettime, clocks)),
    )
    if answered.failed:
        raise ServerFailed(url, found=f"{answered.failed} failed requests", expected="answers 2xx")
    return 1e3 * answered.cpu_s / answered.requests


def _nginx(settings: Settings, port: int, stack: contextlib.ExitStack) -> tuple[str, list[int]]:
    """Start nginx in front of a ranker; return its address and processes."""
    folder = settings.folder / "nginx"
    folder.mkdir()
    url = stack.enter_context(nginx_in_front(folder, (port, port)))
    master = int((folder / "nginx.pid").read_text())
    return url, [master, *children(master)]


class _Taking(BaseHTTPRequestHandler):
    """Takes whatever is sent, as a collector of traces does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _collect(ports: multiprocessing.SimpleQueue[int]) -> None:
    server = ThreadingHTTPServer((HOST, 0), _Taking)
    ports.put(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Give the address of a collector that takes traces and drops them."""
    context = multiprocessing.get_context("spawn")
    ports: multiprocessing.SimpleQueue[int] = context.SimpleQueue()
    process = context.Process(target=_collect, args=(ports,), daemon=True)
    process.start()
    try:
        yield f"http://{HOST}:{ports.get()}/v1/traces"
    finally:
        process.kill()
        process.join()


SCENARIO = Scenario("costs", "what keys, logs and traces add to a request's CPU time: keys and logs at most 3 %", run)
