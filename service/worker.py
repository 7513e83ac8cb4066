"""What one worker process shares between its requests: models, config, permits, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fusion.policy import load_config
from service.admission import Admission
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.models import ModelRepository
from service.ranker import Ranker
from service.settings import Settings
from service.snapshot import Serving, take_snapshot


class Worker:
    """Everything that one worker's requests share."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Wire the parts; `load` makes it ready."""
        self.settings = settings
        self.metrics = metrics
        self.lifecycle = Lifecycle(settings.drain_seconds)
        self.repository = ModelRepository(settings, metrics)
        self.serving = Serving()
        self.admission = Admission(settings, metrics)
        self.ranker = Ranker(metrics)
        self.pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="rank")

    def load(self) -> None:
        """Load fusion config and models, and check them against each other.

        Raises:
            FusionError, BundleError, ModelsMissing, ModelFailed: why the service cannot start.
        """
        config = load_config(self.settings.fusion)
        self.repository.load_all()
        models = self.repository.serving
        self.serving.snapshots = {name: take_snapshot(model, config) for name, model in models.items()}
        self.metrics.config_info.labels(config.version).set(1)
        for kind in ("model", "config"):
            self.metrics.reload_ok.labels(kind).set(1)
            self.metrics.reload_time.labels(kind).set_to_current_time()
        self.lifecycle.warmed = True

    def close(self) -> None:
        """Let go of the threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)
