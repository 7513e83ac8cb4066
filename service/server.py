"""One worker's process: metrics port, loaded models, uvicorn, and an end that loses no request.

On SIGTERM or SIGINT /readyz turns 503 at once, requests are taken until the drain window is over, and those in
flight are finished. A second signal ends the window.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import socket
import time
from types import FrameType
from typing import Protocol

import uvicorn
from prometheus_client import Histogram

from bundle.memory import keep_freed_memory
from service.app import build_app
from service.lifecycle import Lifecycle
from service.logs import count_drops
from service.metrics import Metrics, start_metrics_server
from service.openapi import RANK_PATH
from service.settings import Settings
from service.shed import Door, guarded
from service.sockets import open_socket
from service.straight import straight
from service.tally import TalliedRegistry
from service.worker import Worker

_LOG = logging.getLogger("service.server")
BACKLOG = 2048
GC_THRESHOLDS = (50_000, 20, 100)
"""Requests leave next to no cycles; to look for them as often as Python does costs 2 to 4 % of a request's time."""
KEPT_BYTES = 64 << 20
"""Freed memory that a worker keeps at most for its next requests."""
TICK_SECONDS = 0.1
"""How long uvicorn's main loop sleeps between two ticks."""


class Beats(Protocol):
    """A number that a worker counts up while its event loop turns, and its supervisor looks at."""

    value: int


class DrainingServer(uvicorn.Server):
    """A server that is told to stop by a signal and stops when its lifecycle says so."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, lag: Histogram, beats: Beats | None) -> None:
        """Serve until the lifecycle's drain window is over; observe in `lag` how late the event loop wakes."""
        super().__init__(config)
        self._beats = beats
        self._lifecycle = lifecycle
        self._lag = lag
        self._ticked: float | None = None
        self._supervisor = multiprocessing.parent_process()
        self._forked_from = os.getppid()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends the window, so that Ctrl-C twice is quick."""
        self._lifecycle.drain()

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to stop; a worker without its supervisor drains too."""
        now = time.perf_counter()
        if self._ticked is not None:
            self._lag.observe(max(0.0, now - self._ticked - TICK_SECONDS))
        self._ticked = now
        if self._beats is not None:
            self._beats.value += 1
        if self._is_orphan() and self._lifecycle.stop_at is None:
            self._lifecycle.drain()
        if self._lifecycle.stopped:
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_orphan(self) -> bool:
        """Say whether the supervisor is gone, or the process between it and this one that tells it of an end."""
        if self._supervisor is None:
            return False
        return os.getppid() != self._forked_from or not self._supervisor.is_alive()


def serve_one(settings: Settings) -> int:
    """Serve from this process alone until told to stop; return the exit code.

    Raises:
        StartRefused, BundleError, FusionError: why it cannot start.
    """
    opened = open_socket(settings.host, settings.port)
    registry = TalliedRegistry()
    metrics = Metrics(registry)
    server, thread, metrics_port = start_metrics_server(registry, settings.metrics_host, settings.metrics_port)
    try:
        return run_worker(settings, metrics, opened, metrics_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        opened.close()


def run_worker(
    settings: Settings, metrics: Metrics, opened: socket.socket, metrics_port: int, beats: Beats | None = None
) -> int:
    """Load, serve on an open socket until told to stop, return the exit code; count ticks of serving in `beats`."""
    count_drops(metrics.log_dropped)
    keep_freed_memory(KEPT_BYTES)
    worker = Worker(settings, metrics)
    try:
        worker.load()
        app = build_app(worker)
        gc.collect()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.freeze()  # what is loaded now lives as long as the process: no collection walks it again
        refused = metrics.tallies.count(metrics.requests.labels(RANK_PATH, "POST", "503"))
        door = Door(worker.admission, RANK_PATH, refused)
        config = uvicorn.Config(
            app,
            http=guarded(door, straight(worker)),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=settings.stop_seconds,
            timeout_keep_alive=75,
        )
        opened.listen(BACKLOG)
        host, port = opened.getsockname()[:2]
        _LOG.info("serving on http://%s:%d, metrics on http://%s:%d", host, port, settings.metrics_host, metrics_port)
        DrainingServer(config, worker.lifecycle, metrics.loop_lag, beats).run([opened])
    finally:
        worker.close()
    return 0
