"""Models and fusion config as they are on disk → what serves; looked at again and again by one thread.

Files are compared by content, so renames, ConfigMap swaps and rewrites in place are all seen. Content must be the
same at two looks before it is taken over: a file that is being written is not half read. What does not fit is
logged, counted and left alone until it changes; the last good model and config go on serving.
"""

from __future__ import annotations

import hashlib
import logging
import threading

from fusion.document import read_files
from fusion.errors import FusionError
from fusion.policy import FusionConfig, parse_config
from service.metrics import Metrics
from service.models import LoadedModel, ModelRepository
from service.settings import Settings
from service.snapshot import Serving, take_snapshot

_LOG = logging.getLogger("service.reload")
UNREADABLE = "unreadable"
SETTLE_SECONDS = 0.05
"""How long new config content must stay the same before it is believed."""


class Reloader:
    """Keeps `serving` what is on disk. Only one thread at a time may call `load` or `look`."""

    def __init__(self, settings: Settings, metrics: Metrics, serving: Serving) -> None:
        """Look at nothing yet."""
        self._settings = settings
        self._metrics = metrics
        self._serving = serving
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._content = ""
        self.repository = ModelRepository(settings, metrics)
        self.config: FusionConfig

    def load(self) -> None:
        """Load config and models for the first time.

        Raises:
            FusionError, BundleError, ModelsMissing, ModelFailed: why there is nothing to serve.
        """
        files = read_files(self._settings.fusion)
        self._content = _content(files)
        self.config = parse_config(files)
        self.repository.load_all(self._publish)
        self._note_config(self.config)
        self._metrics.reload_ok.labels("model").set(1)

    def start(self) -> None:
        """Begin to look again and again, unless settings say never."""
        if self._settings.reload_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Take over what has changed, config first."""
        self._look_at_config()
        complaints = [
            self.repository.refresh(name, self._publish, self.config.version) for name in self.repository.serving
        ]
        self._metrics.reload_ok.labels("model").set(not any(complaints))

    def _run(self) -> None:
        while not self._stop.wait(self._settings.reload_seconds):
            try:
                self.look()
            except Exception as exc:  # noqa: BLE001 - a bug in one look is shown, and must not end all looks
                self._metrics.load_failures.labels("look", type(exc).__name__).inc()
                _LOG.exception("a look at models and config failed")

    def _publish(self, model: LoadedModel) -> None:
        self._serving.publish(take_snapshot(model, self.config))

    def _look_at_config(self) -> None:
        content = UNREADABLE
        try:
            files = read_files(self._settings.fusion)
            content = _content(files)
            if content == self._content or not self._settled(content):
                return
            config = parse_config(files)
            snapshots = [take_snapshot(model, config) for model in self.repository.serving.values()]
        except FusionError as exc:
            if content != self._content and (content != UNREADABLE or self._settled(content)):
                self._content = content
                self._refuse_config(exc)
            return
        self._content = content
        self._serving.publish(*snapshots)
        previous, self.config = self.config, config
        if previous.version != config.version:
            self._metrics.retire(self._metrics.config_info, previous.version)
            _LOG.info("config %s serves", config.version)
        self._note_config(config)

    def _settled(self, content: str) -> bool:
        """Return whether the content is still the same a moment later."""
        if self._stop.wait(SETTLE_SECONDS):
            return False
        try:
            return _content(read_files(self._settings.fusion)) == content
        except FusionError:
            return content == UNREADABLE

    def _note_config(self, config: FusionConfig) -> None:
        self._metrics.config_info.labels(config.version).set(1)
        self._metrics.reload_ok.labels("config").set(1)
        self._metrics.reload_time.labels("config").set_to_current_time()

    def _refuse_config(self, complaint: FusionError) -> None:
        self._metrics.reload_ok.labels("config").set(0)
        self._metrics.load_failures.labels("config", type(complaint).__name__).inc()
        _LOG.error("config refused, %s goes on serving: %s", self.config.version, complaint)


def _content(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
