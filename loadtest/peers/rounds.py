"""Measures servers in turns, round by round, and keeps what each gave.

Each server is started, asked at every N in every wire, and stopped; the next one follows on the same core. A
round is all servers once; their order turns by one from round to round.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.errors import AnswerWrong, LoadtestError, ServerFailed
from loadtest.peers.catalogue import HOST, PEERS_FOLDER, Server
from loadtest.peers.closed_loop import drive_closed
from loadtest.peers.kit import Kit
from loadtest.peers.process import START_S, Running, running
from loadtest.peers.wires import Wire
from loadtest.traffic import Target, build_requests

_ANSWER_S = 60.0


@dataclass(frozen=True)
class Key:
    """What was measured: a server, asked in one way, at N candidates."""

    server: str
    wire: str
    candidates: int


@dataclass(frozen=True)
class Figure:
    """One round's figures."""

    requests_per_s: float
    cpu_ms: float


@dataclass(frozen=True)
class Settings:
    """How it is measured: closed loop of `connections`, server and client each on a core of its own."""

    rounds: int = 3
    duration_s: float = 2.0
    warmup_s: float = 0.3
    connections: int = 2
    server_core: int = 0
    client_core: int = 1


@dataclass
class Results:
    """What came out.

    Attributes:
        figures: by what was measured, one entry a round.
        skipped: server (and wire) → why it was not measured.
        largest_error: server and wire → largest |P(task) − the plain export's|.
    """

    figures: dict[Key, list[Figure]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    largest_error: dict[str, float] = field(default_factory=dict)


def measure_servers(
    kit: Kit, servers: Sequence[Server], candidates: Sequence[int], settings: Settings, say: Callable[[str], None]
) -> Results:
    """Return what every server gave; one that is missing or fails is named as skipped, with the reason."""
    results = Results()
    able = []
    for server in servers:
        if reason := why_skipped(server, kit):
            results.skipped[server.name] = reason
            say(f"{server.name}: skipped: {reason}")
        else:
            able.append(server)
    pinned = os.sched_getaffinity(0)
    try:
        for number in range(settings.rounds):
            turn = number % max(1, len(able))
            for server in able[turn:] + able[:turn]:
                if server.name not in results.skipped:
                    os.sched_setaffinity(0, pinned)
                    _measure_server(kit, server, candidates, settings, results)
                    say(f"round {number + 1} of {settings.rounds}: {_shown(server, candidates, results)}")
    finally:
        os.sched_setaffinity(0, pinned)
    return results


def why_skipped(server: Server, kit: Kit) -> str | None:
    """Return why a server cannot be measured here, None when it can."""
    if server.models is not None and not kit.models(server.models).is_dir():
        return f"the kit has no models folder {server.models}/"
    if server.peer is not None and not (PEERS_FOLDER / server.peer / "bin" / "python").exists():
        failure = PEERS_FOLDER / f"{server.peer}.failed"
        why = failure.read_text().strip() if failure.exists() else "not installed"
        return f"{why} (dlen loadtest compare --install --peers {server.peer})"
    return None


def _measure_server(kit: Kit, server: Server, candidates: Sequence[int], settings: Settings, results: Results) -> None:
    try:
        with running(server, kit, settings.server_core) as started:
            os.sched_setaffinity(0, {settings.client_core})
            if server.graphs:
                _measure_loop(started, candidates, settings, results)
            if server.wires:
                _wait_until_ready(kit, started, server.wires[0], candidates[0])
            for wire in server.wires:
                for count in candidates:
                    _measure_wire(kit, started, wire, count, settings, results)
    except LoadtestError as exc:
        results.skipped[server.name] = str(exc)
        for key in [key for key in results.figures if key.server == server.name]:
            del results.figures[key]


def _measure_wire(kit: Kit, started: Running, wire: Wire, count: int, settings: Settings, results: Results) -> None:
    error, name = _ask(kit, started, wire, count), f"{started.server.name}, {wire.name}"
    results.largest_error[name] = max(error, results.largest_error.get(name, 0.0))
    requests = [
        build_requests(Target(HOST, started.port, sent.path, headers=sent.headers), [sent.body])[0]
        for sent in wire.requests(kit, count)
    ]
    answered = drive_closed(
        HOST,
        started.port,
        requests,
        connections=settings.connections,
        warmup_s=settings.warmup_s,
        duration_s=settings.duration_s,
        cpu_s=started.cpu_clock(),
    )
    if answered.failed or not answered.requests:
        raise started.failed(f"{answered.failed} failed requests of {count} candidates as {wire.name}")
    figure = Figure(answered.requests / answered.seconds, 1e3 * answered.cpu_s / answered.requests)
    results.figures.setdefault(Key(started.server.name, wire.name, count), []).append(figure)


def _wait_until_ready(kit: Kit, started: Running, wire: Wire, count: int) -> None:
    """Return when a request is answered well; a listener may be up before its model is."""
    patience = time.monotonic() + START_S
    while True:
        try:
            _ask(kit, started, wire, count)
            return
        except AnswerWrong:
            raise
        except ServerFailed:
            if time.monotonic() > patience or started.process.poll() is not None:
                raise
        time.sleep(0.2)


def _ask(kit: Kit, started: Running, wire: Wire, count: int) -> float:
    """Return how far the server's P(task) lies from the plain export's, at most.

    Raises:
        ServerFailed: it does not answer.
        AnswerWrong: P(task) is further off than the wire allows.
    """
    sent = wire.requests(kit, count)[0] if wire.check is None else wire.check(kit, count)
    connection = http.client.HTTPConnection(HOST, started.port, timeout=_ANSWER_S)
    try:
        connection.request("POST", sent.path, sent.body, sent.headers)
        answer = connection.getresponse()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
    except (OSError, http.client.HTTPException) as exc:
        raise started.failed(f"no answer to {count} candidates as {wire.name}: {exc!r}") from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise started.failed(f"status {answer.status}: {body[:200]!r} to {count} candidates as {wire.name}")
    expected, found = kit.expected(count), wire.read_p(kit, count, body, headers)
    error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not error <= wire.tolerance:
        what = f"P(task) off by {error:.3g} at {count} candidates as {wire.name}"
        raise AnswerWrong(started.server.name, found=what, expected=f"at most {wire.tolerance:g}")
    return error


def _measure_loop(started: Running, candidates: Sequence[int], settings: Settings, results: Results) -> None:
    stdin, stdout = started.process.stdin, started.process.stdout
    assert stdin is not None and stdout is not None
    for graph in started.server.graphs:
        for count in candidates:
            stdin.write(f"{graph} {count} {settings.duration_s}\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise started.failed("its end")
            given = json.loads(line)
            if not given:
                continue
            figure = Figure(given["requests"] / given["seconds"], 1e3 * given["cpu_s"] / given["requests"])
            wire = f"{graph.replace('-', ' in ')} graph"
            results.figures.setdefault(Key(started.server.name, wire, count), []).append(figure)
            name = f"{started.server.name}, {wire}"
            results.largest_error[name] = max(given["largest_error"], results.largest_error.get(name, 0.0))


def _shown(server: Server, candidates: Sequence[int], results: Results) -> str:
    if reason := results.skipped.get(server.name):
        return f"{server.name}: skipped: {reason}"
    parts = []
    for wire in dict.fromkeys(key.wire for key in results.figures if key.server == server.name):
        rates = (results.figures[Key(server.name, wire, count)][-1].requests_per_s for count in candidates)
        parts.append(f"{wire} " + " ".join(f"{rate:.0f}" for rate in rates))
    return f"{server.name}: {'; '.join(parts)} requests/s"
