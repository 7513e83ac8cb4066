"""`dlen serve`: one process, or a supervisor over several workers that share a socket.

The supervisor loads no model and answers no request: it starts workers, kills one that hangs, starts a new one where
one died, shows the workers' metrics as one, and passes the signal to stop on to them. Workers are forked from a process
of multiprocessing's that has imported all they need (`service.preload`) and has a single thread.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from service.cores import usable_cores
from service.logs import start_logging
from service.metrics import Metrics, SupervisorMetrics, start_metrics_server, use_slot, workers_registry
from service.settings import Settings, unknown_variables
from service.sockets import open_socket

if TYPE_CHECKING:
    from service.server import Beats

_LOG = logging.getLogger("service.supervisor")
_TICK_SECONDS = 0.1
_RESTART_SECONDS = 1.0
BAD_START = 2
"""Exit code of a worker that may not start: another one would fail alike."""


def serve(settings: Settings) -> int:
    """Serve until told to stop; return the exit code."""
    start_logging(settings)
    for variable in unknown_variables(os.environ):
        _LOG.warning("environment %s is no setting and is not read", variable)
    workers = settings.workers or usable_cores()
    if workers == 1:
        from service.server import serve_one  # here, since a supervisor needs none of what a worker does

        return serve_one(settings)
    with tempfile.TemporaryDirectory(prefix="dlen-metrics-") as folder:
        return Supervisor(settings, Path(folder), workers).run()


class Supervisor:
    """Keeps the wanted number of workers alive."""

    def __init__(self, settings: Settings, metrics_folder: Path, workers: int) -> None:
        """Start nothing yet."""
        self._settings = settings
        self._folder = metrics_folder
        self._wanted = workers
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["service.preload"])
        self._workers: dict[int, BaseProcess] = {}
        self._beats: dict[int, Beats] = {}
        self._still: dict[int, tuple[int, int]] = {}
        self._due: dict[int, float] = {}
        self._replaced: set[int] = set()
        self._signals = 0

    def run(self) -> int:
        """Run workers until told to stop, or until one may not start; return the exit code."""
        settings = self._settings
        opened = open_socket(settings.host, settings.port)
        registry = workers_registry(self._folder)
        self._metrics = SupervisorMetrics(registry)
        server, thread, port = start_metrics_server(registry, settings.metrics_host, settings.metrics_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own threads, none of which a worker ever asks
        try:
            for slot in range(self._wanted):
                self._start(slot, opened, port)
            return self._watch(opened, port)
        finally:
            self._stop()
            server.shutdown()
            server.server_close()
            thread.join()
            opened.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._workers.values():
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def _start(self, slot: int, opened: socket.socket, port: int) -> None:
        beats = self._context.Value("Q", 0, lock=False)
        self.watch_beats(slot, beats)
        process = self._context.Process(
            target=work, args=(self._settings, self._folder, slot, opened, port, beats), name=f"worker {slot}"
        )
        process.start()
        self._workers[slot] = process

    def _watch(self, opened: socket.socket, port: int) -> int:
        """Start a new worker where one died, until every worker was told to stop and did."""
        while True:
            alive = [process for process in self._workers.values() if process.is_alive()]
            if self._signals and not alive:
                return 0
            for slot, process in list(self._workers.items()):
                if self._signals:
                    continue
                if process.is_alive():
                    self.look_for_life(slot, process)
                    continue
                why = _refusal(self._folder, slot)
                if process.exitcode == BAD_START and slot not in self._replaced:
                    sys.stderr.write(f"dlen: error: {why}\n")  # once, though all workers are refused alike
                    return BAD_START  # at the start of the service; later, the other workers go on
                if slot not in self._due:
                    _LOG.error(
                        "worker %d ended with %s%s; starting another", slot, process.exitcode, why and f" ({why})"
                    )
                    self._due[slot] = time.monotonic() + _RESTART_SECONDS
                elif time.monotonic() >= self._due[slot]:
                    del self._due[slot]
                    self._replaced.add(slot)
                    self._metrics.restarts.inc()
                    self._start(slot, opened, port)
            time.sleep(_TICK_SECONDS)

    def watch_beats(self, slot: int, beats: Beats) -> None:
        """Take `beats` for those of the slot's worker from now on."""
        self._beats[slot], self._still[slot] = beats, (0, 0)

    def look_for_life(self, slot: int, process: BaseProcess) -> None:
        """Kill a worker whose event loop has stood still for too long; its connections would wait for ever.

        Counted in looks and not by a clock: a machine that stands still as a whole, or a supervisor that did, is no
        worker's fault. A worker that does not serve yet has no beat and may take its time.
        """
        last, looks = self._still[slot]
        beat = self._beats[slot].value
        looks = looks + 1 if beat == last else 0
        self._still[slot] = beat, looks
        hang_seconds = self._settings.hang_seconds
        if beat and hang_seconds and looks * _TICK_SECONDS >= hang_seconds:
            _LOG.error("worker %d has stood still for %.1f s; killed", slot, looks * _TICK_SECONDS)
            process.kill()
            process.join()

    def _stop(self) -> None:
        """Stop what still runs: gently, then not."""
        self._pass_on(signal.SIGTERM)
        self._pass_on(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.stop_seconds + 1
        for process in self._workers.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def work(settings: Settings, folder: Path, slot: int, opened: socket.socket, metrics_port: int, beats: Beats) -> None:
    """Run one worker of several; the entry point of its process."""
    from service.server import run_worker

    start_logging(settings)
    slot_files = use_slot(folder, slot)
    try:
        code = run_worker(settings, Metrics(CollectorRegistry(), slot_files), opened, metrics_port, beats)
    except Exception as exc:
        code = getattr(exc, "exit_code", 0)
        if not code:
            raise
        _refusal_file(folder, slot).write_text(str(exc), "utf-8")
    sys.exit(code)


def _refusal_file(folder: Path, slot: int) -> Path:
    return folder / f"refused-{slot}.txt"


def _refusal(folder: Path, slot: int) -> str:
    """Return why the slot's worker may not start, as it said at its end, and forget it; else an empty text."""
    file = _refusal_file(folder, slot)
    if not file.exists():
        return ""
    why = file.read_text("utf-8")
    file.unlink()
    return why
