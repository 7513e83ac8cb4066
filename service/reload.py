"""Models and fusion config as they are on disk → what serves; looked at again and again.

Config and models are looked at by a thread each, so that a model that takes long to load does not hold up a config; a
lock lets one of them publish at a time. Files are compared by content, so renames, ConfigMap swaps and rewrites in
place are all seen. What does not fit is logged, counted and left alone until it changes; the last good model and
config go on serving. What is replaced leaves cycles of references behind, which the collector, called rarely by
itself (`server.py`), is called for.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable

from bundle.errors import BundleError
from fusion.errors import FusionError
from fusion.experiments import planned_shares
from fusion.policy import FusionConfig, parse_config
from service.config_source import ConfigSource
from service.errors import ServiceError
from service.metrics import Metrics
from service.models import LoadedModel, ModelRepository
from service.settings import Settings
from service.snapshot import Serving, take_snapshot

_LOG = logging.getLogger("service.reload")
LOOK_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, BundleError, FusionError, LookupError, MemoryError, OSError,
    RuntimeError, ServiceError, TypeError, ValueError,
)  # fmt: skip
"""What a bug, or a machine at its limits, may raise in a look; it is shown, and must not end all looks."""


class Reloader:
    """Keeps `serving` what is on disk. Each `look_at_…` is for one thread at a time."""

    def __init__(self, settings: Settings, metrics: Metrics, serving: Serving) -> None:
        """Look at nothing yet."""
        self._settings = settings
        self._metrics = metrics
        self._serving = serving
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._publishing = threading.Lock()
        self._content = ""
        self.source = ConfigSource(settings.fusion, settings.fusion_state, metrics)
        self.repository = ModelRepository(settings, metrics)
        self.config: FusionConfig

    def load(self) -> None:
        """Load config and models for the first time.

        Raises:
            FusionError, BundleError, ModelsMissing, ModelFailed: why there is nothing to serve.
        """
        reading = self.source.read()
        if reading.files is None:
            assert reading.complaint is not None
            raise reading.complaint
        self._content = reading.content
        self.config = parse_config(reading.files)
        self.repository.load_all(self._publish)
        self.source.record(reading.files, previous=None)
        self._note_config(self.config)
        self._metrics.versioned.drop_left_behind()
        self._metrics.reload_ok.labels("model").set(1)

    def start(self) -> None:
        """Begin to look again and again, unless settings say never."""
        if self._settings.reload_seconds > 0:
            for what, look in (("config", self.look_at_config), ("models", self.look_at_models)):
                self._threads.append(threading.Thread(target=self._run, args=(look,), name=what, daemon=True))
                self._threads[-1].start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def look(self) -> None:
        """Take over what has changed, config first."""
        self.look_at_config()
        self.look_at_models()

    def look_at_models(self) -> None:
        """Take over models that have changed."""
        before = self.repository.serving
        complaints = [self.repository.refresh(name, self._publish, self.config.version) for name in before]
        self._metrics.reload_ok.labels("model").set(not any(complaints))
        if self.repository.serving is not before:
            gc.collect()

    def look_at_config(self) -> None:
        """Take over the config if it has changed and fits every model that serves."""
        reading = self.source.read_settled(self._content, self._stop)
        if reading is None:
            return
        self._content = reading.content
        if reading.files is None:
            assert reading.complaint is not None
            self._refuse_config(reading.complaint)
            return
        try:
            config = parse_config(reading.files)
            previous = self._publish_config(config)
        except FusionError as exc:
            self._refuse_config(exc)
            return
        if previous.version != config.version:
            _LOG.info("config %s serves", config.version)
            self.source.record(reading.files, previous.version)
            gc.collect()
        self._note_config(config)

    def _run(self, look: Callable[[], None]) -> None:
        while not self._stop.wait(self._settings.reload_seconds):
            try:
                look()
            except LOOK_FAILURES as exc:
                self._metrics.load_failures.labels("look", type(exc).__name__).inc()
                _LOG.exception("a look at models and config failed")

    def _publish(self, model: LoadedModel) -> None:
        with self._publishing:
            self._serving.publish(take_snapshot(model, self.config))

    def _publish_config(self, config: FusionConfig) -> FusionConfig:
        """Let a config serve with every model, or with none; return the one that served before.

        Raises:
            FusionError: it does not fit a model.
        """
        with self._publishing:
            models = [snapshot.model for snapshot in self._serving.snapshots.values()]
            self._serving.publish(*[take_snapshot(model, config) for model in models])
            previous, self.config = self.config, config
        return previous

    def _note_config(self, config: FusionConfig) -> None:
        planned = {("dlen_experiment_planned_share", labels): share for labels, share in planned_shares(config).items()}
        self._metrics.versioned.show(("config",), {("dlen_config_info", (config.version,)): 1, **planned})
        self._metrics.reload_ok.labels("config").set(1)
        self._metrics.reload_time.labels("config").set_to_current_time()

    def _refuse_config(self, complaint: FusionError) -> None:
        self._metrics.reload_ok.labels("config").set(0)
        self._metrics.load_failures.labels("config", type(complaint).__name__).inc()
        _LOG.error("config refused, %s goes on serving: %s", self.config.version, complaint)
