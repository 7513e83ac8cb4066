"""The model repository: which versions there are on disk, and the gate that each must pass before it serves.

`models/<name>/<version>/` with numeric versions; anything else in the folder is no version. A version is loaded
once per content: one that was refused is not tried again until its manifest changes. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from bundle.encode import SchemaEncoder
from bundle.errors import BundleError
from bundle.files import sha256_of
from bundle.manifest import MANIFEST_FILE, Manifest
from bundle.read import read_bundle
from service.engine import Engine
from service.errors import ModelFailed, ModelsMissing
from service.metrics import Metrics
from service.settings import Settings

_LOG = logging.getLogger("service.models")


@dataclass(frozen=True)
class LoadedModel:
    """One version that has passed the gate.

    Attributes:
        name: the folder's name.
        version: the number of its folder.
        digest: sha256 of its manifest, which holds the digests of all its files.
        manifest: what it is.
        encoder: raw values → model input.
        engine: model input → probabilities.
    """

    name: str
    version: int
    digest: str
    manifest: Manifest
    encoder: SchemaEncoder
    engine: Engine


class ModelRepository:
    """The versions that serve: per name the highest good one, or the one that settings hold on to."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Look at nothing yet; `refresh` does."""
        self._settings = settings
        self._metrics = metrics
        self._refused: dict[tuple[str, int], str] = {}
        self.serving: dict[str, LoadedModel] = {}

    def names(self) -> list[str]:
        """Return the names of the models to serve, sorted.

        Raises:
            ModelsMissing: no folder, or no model (of the wanted name) in it.
        """
        folder, wanted = self._settings.models, self._settings.model
        if not folder.is_dir():
            raise ModelsMissing(f"models folder {folder}", found="no such folder", expected="<name>/<version>/ bundles")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and versions_of(path))
        if wanted is not None:
            if wanted not in names:
                raise ModelsMissing(f"model {wanted!r}", found=f"no version in {folder}", expected="<version>/ bundles")
            return [wanted]
        if not names:
            raise ModelsMissing(f"models folder {folder}", found="no model in it", expected="<name>/<version>/ bundles")
        return names

    def load_all(self) -> None:
        """Load every model for the first time.

        Raises:
            ModelsMissing: there is nothing to serve.
            BundleError, ModelFailed: the complaint about the highest version of a model without any good one.
        """
        for name in self.names():
            problem = self.refresh(name)
            if name not in self.serving and problem is not None:
                raise problem

    def refresh(self, name: str) -> BundleError | ModelFailed | ModelsMissing | None:
        """Take over the best version of a model, if it is not the one that serves; return the first complaint.

        Versions are tried from the highest down to the one that serves, which stays when none of them is good.
        """
        folder = self._settings.models / name
        wanted = self._settings.version
        candidates = [v for v in versions_of(folder) if wanted is None or v == wanted]
        serving = self.serving.get(name)
        first: BundleError | ModelFailed | ModelsMissing | None = None
        if not candidates:
            return ModelsMissing(f"model {name!r}", found="no such version", expected=f"version {wanted or 'folders'}")
        for version in reversed(candidates):
            if serving is not None and serving.version == version and serving.digest == _digest(folder / str(version)):
                return first
            try:
                self._take_over(self._load(name, version))
            except _AlreadyRefused:
                continue
            except (BundleError, ModelFailed) as exc:
                first = first or exc
            else:
                return first
        return first

    def _load(self, name: str, version: int) -> LoadedModel:
        """Return a version that has passed every check, or raise the first complaint."""
        folder = self._settings.models / name / str(version)
        digest = _digest(folder)
        if self._refused.get((name, version)) == digest:
            raise _AlreadyRefused
        try:
            bundle = read_bundle(folder)
            engine = Engine(bundle, self._settings.warmup_runs)
            return LoadedModel(name, version, digest, bundle.manifest, SchemaEncoder(bundle.schema), engine)
        except (BundleError, ModelFailed) as exc:
            self._refused[(name, version)] = digest
            self._metrics.load_failures.labels("model", type(exc).__name__).inc()
            _LOG.error("model %s/%d refused: %s", name, version, exc)
            raise

    def _take_over(self, model: LoadedModel) -> None:
        previous = self.serving.get(model.name)
        self.serving = {**self.serving, model.name: model}
        if previous is not None:
            self._metrics.model_info.labels(model.name, str(previous.version)).set(0)
        self._metrics.model_info.labels(model.name, str(model.version)).set(1)
        self._metrics.reload_time.labels("model").set_to_current_time()
        _LOG.info("model %s/%d serves (%s)", model.name, model.version, model.manifest.architecture)


class _AlreadyRefused(Exception):
    """The version was refused before and has not changed since."""


def versions_of(folder: Path) -> list[int]:
    """Return the numbers of a model's version folders, rising; names like 01 or .tmp are no versions."""
    found = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in found if name.isdecimal() and name.isascii() and str(int(name)) == name)


def _digest(folder: Path) -> str:
    try:
        return sha256_of(folder / MANIFEST_FILE)
    except OSError:
        return ""
