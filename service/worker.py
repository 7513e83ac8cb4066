"""What one worker process shares between its requests: models, config, permits, threads."""

from __future__ import annotations

import logging

from bundle import loops as hashing
from bundle import operators
from fusion import loops as scoring
from service import tally
from service.admission import Admission
from service.compute import Compute
from service.keys import Keys
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving
from service.tracing import Tracing
from service.wire import loops as wire

_LOG = logging.getLogger("service.worker")


class Worker:
    """Everything that one worker's requests share."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Wire the parts; `load` makes it ready."""
        self.settings = settings
        self.metrics = metrics
        self.lifecycle = Lifecycle(settings.drain_seconds)
        self.serving = Serving()
        self.reloader = Reloader(settings, metrics, self.serving)
        self.admin_keys = Keys("admin_keys_file", settings.admin_keys_file)
        self.caller_keys = Keys("keys_file", settings.keys_file, keep_last_good=True)
        self.admission = Admission(settings, metrics)
        self.ranker = Ranker(metrics, log_exposures=settings.log_exposures)
        self.tracing = None if settings.otel_endpoint is None else Tracing(settings, metrics.spans_lost)
        self.compute = Compute(settings.threads, settings.inline_ms)

    def load(self) -> None:
        """Load fusion config and models, check them against each other, and begin to watch them.

        Raises:
            FusionError, BundleError, StartRefused, ModelFailed: why the service cannot start.
        """
        self.admin_keys.check()
        self.caller_keys.check()
        compiled = are_compiled()
        self.metrics.compiled.set(compiled)
        if not compiled:
            _LOG.warning(
                "the compiled loops are not built: a request takes up to 1.6 times the CPU time (docs/serving.md)"
            )
        usable = operators.usable() and not self.settings.stock_graphs
        self.metrics.operators.labels(operators.instructions() if usable else "none").set(1)
        if not usable:
            _LOG.info("int8 models run by stock graphs: %s", self._why_stock())
        self.reloader.load()
        self.lifecycle.warmed = True
        self.reloader.start()

    def _why_stock(self) -> str:
        if self.settings.stock_graphs:
            return "stock_graphs is set"
        if operators.instructions() is None:
            return "our operators are not built (docs/serving.md)"
        return "this processor lacks AVX-512 VNNI"

    def close(self) -> None:
        """Let go of the threads."""
        self.reloader.stop()
        self.compute.close()
        if self.tracing is not None:
            self.tracing.close()


def are_compiled() -> bool:
    """Return whether what can be compiled is (`bundle`, `fusion` and `service` have `.pyx` files)."""
    return None not in (hashing.compiled, scoring.compiled, wire.json, wire.arrow, tally.compiled)
