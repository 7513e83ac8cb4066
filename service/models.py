"""The model repository: which versions there are on disk, and the gate that each must pass before it serves.

`models/<name>/<version>/` with numeric versions; anything else in the folder is no version. A version is loaded
once per content: one that was refused is not tried again until its manifest changes, or the trusted keys do where it is
their complaint. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle import operators
from bundle.encode import SchemaEncoder
from bundle.errors import BundleError, FileMissing, KeyInvalid, SignatureInvalid
from bundle.files import sha256_of
from bundle.manifest import MANIFEST_FILE, Manifest
from bundle.read import read_bundle
from bundle.signature import read_trusted_keys
from fusion.errors import FusionError
from service.drift import show_distributions, show_distributions_no_more
from service.engine import Engine
from service.errors import ModelFailed, ModelsMissing
from service.items import ItemEncoder
from service.metrics import Metrics
from service.settings import Settings
from service.wire.typed_json import TypedJson

_LOG = logging.getLogger("service.models")


@dataclass(frozen=True)
class LoadedModel:
    """One version that has passed the gate.

    Attributes:
        name: the folder's name.
        version: the number of its folder.
        content: what `content_of` its folder gave when it was loaded.
        manifest: what it is.
        encoder: raw values → model input.
        engine: model input → probabilities.
        items: candidates → model input, by their features or the bundle's item table.
        typed_json: JSON rows → columns, by the schema.
    """

    name: str
    version: int
    content: str
    manifest: Manifest
    encoder: SchemaEncoder
    engine: Engine
    items: ItemEncoder
    typed_json: TypedJson


Complaint = BundleError | FusionError | ModelFailed
"""Why a version may not serve."""
Publish = Callable[[LoadedModel], None]
"""The last gate: lets a model serve, or raises FusionError where the fusion config does not fit it."""


class ModelRepository:
    """The versions that serve: per name the highest good one, or the one that settings hold on to."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Look at nothing yet; `refresh` does."""
        self._settings = settings
        self._metrics = metrics
        self._refused: dict[tuple[str, int], tuple[str, Complaint]] = {}
        self._retired: dict[str, int] = {}
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

    def load_all(self, publish: Publish) -> None:
        """Load every model for the first time.

        Raises:
            ModelsMissing: there is nothing to serve.
            BundleError, FusionError, ModelFailed: the complaint about the highest version of a model that has no
                good one.
        """
        for name in self.names():
            complaint = self.refresh(name, publish)
            if name not in self.serving:
                wanted = f"version {self._settings.version}"
                raise complaint or ModelsMissing(f"model {name!r}", found="no such version", expected=wanted)

    def refresh(self, name: str, publish: Publish, config_version: str = "") -> Complaint | None:
        """Take over the best version of a model, if it is not the one that serves.

        Versions are tried from the highest down to the one that serves, which stays when none above it is good.
        Returns the standing complaint about the highest version that may not serve.
        """
        folder, wanted = self._settings.models / name, self._settings.version
        serving = self.serving.get(name)
        first: Complaint | None = None
        trust = self._trust()
        for version in reversed(versions_of(folder)):
            if wanted is not None and version != wanted:
                continue
            content = content_of(folder / str(version))
            if serving is not None and (serving.version, serving.content) == (version, content):
                return first
            known = self._refused.get((name, version))
            if known is not None and known[0] in (content, content + config_version, content + trust):
                first = first or known[1]
                continue
            try:
                model = self._load(name, version, content)
                publish(model)
            except (BundleError, FusionError, ModelFailed) as exc:
                first = first or exc
                about_trust = isinstance(exc, SignatureInvalid | KeyInvalid)
                because = config_version if isinstance(exc, FusionError) else trust if about_trust else ""
                self._refuse(name, version, content + because, exc)
            else:
                self._take_over(model)
                return first
        return first

    def _load(self, name: str, version: int, content: str) -> LoadedModel:
        """Return a version that has passed every check of its own, or raise the first complaint."""
        folder, keys = self._settings.models / name / str(version), self._settings.trusted_keys_file
        try:
            bundle = read_bundle(folder, None if keys is None else read_trusted_keys(keys))
        except OSError as exc:  # taken away or made unreadable while it was read
            raise FileMissing(str(exc.filename or folder), found=exc.strerror, expected="a readable file") from exc
        engine = Engine(bundle, self._settings.warmup_runs, stock_graphs=self._settings.stock_graphs)
        encoder = SchemaEncoder(bundle.schema)
        items = ItemEncoder(encoder.item, bundle.items, engine)
        typed_json = TypedJson(bundle.schema.item_part)
        return LoadedModel(name, version, content, bundle.manifest, encoder, engine, items, typed_json)

    def _trust(self) -> str:
        """Return what changes whenever the file of trusted keys does."""
        file = self._settings.trusted_keys_file
        if file is None:
            return ""
        try:
            return f" trusting {sha256_of(file)}"
        except OSError:
            return " trusting nobody"

    def _refuse(self, name: str, version: int, key: str, complaint: Complaint) -> None:
        self._refused[(name, version)] = key, complaint
        self._metrics.load_failures.labels("model", type(complaint).__name__).inc()
        _LOG.error("model %s/%d refused: %s", name, version, complaint)

    def _take_over(self, model: LoadedModel) -> None:
        previous = self.serving.get(model.name)
        self.serving = {**self.serving, model.name: model}
        if previous is not None and previous.version != model.version:
            before = self._retired.get(model.name)
            if before not in (None, model.version):
                # Not the one just retired: requests in flight still count.
                show_distributions_no_more(self._metrics, model.name, str(before))
            self._retired[model.name] = previous.version
        info = "dlen_model_info", (model.name, str(model.version))
        self._metrics.versioned.show(("model", model.name), {info: 1})
        show_distributions(self._metrics, model)
        self._metrics.reload_time.labels("model").set_to_current_time()
        graph, of = "fused" if model.engine.fused else "stock", model.manifest.fused
        about = f"{model.manifest.architecture}, {model.manifest.precision}, {graph} graph"
        if of is not None and of != operators.VERSION:
            about += f"; its fused graph is of operators {of}, here are {operators.VERSION}: export it anew"
        _LOG.info("model %s/%d serves (%s)", model.name, model.version, about)


def versions_of(folder: Path) -> list[int]:
    """Return the numbers of a model's version folders, rising; names like 01 or .tmp are no versions."""
    try:
        found = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(int(name) for name in found if name.isdecimal() and name.isascii() and str(int(name)) == name)


def content_of(folder: Path) -> str:
    """Return what changes whenever a version's content does: its manifest's sha256, its files' sizes and times."""
    try:
        stats = [(path.name, path.lstat()) for path in sorted(folder.iterdir())]
        manifest = sha256_of(folder / MANIFEST_FILE)
    except OSError:
        return "unreadable"
    return manifest + "".join(f" {name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
