"""Deployment facts of one service: declared once here, read from a YAML file, `DLEN_*` and the command line.

Later sources win: defaults, then the file, then the environment, then the command line. Knows nothing of
model facts (the bundle's) nor of business weights (the fusion config's). `docs/serving.md` lists every field;
a test holds it against this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import SettingsInvalid

ENV_PREFIX = "DLEN_"


class Settings(BaseModel):
    """Everything that differs between two deployments of the same models and fusion config."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    models: Path = Field(description="Folder that holds `<name>/<version>/` bundles.")
    fusion: Path = Field(description="Fusion config: a YAML file, or a directory of them.")
    fusion_state: Path | None = Field(
        default=None,
        description="Folder for the config's history and pin, shared by all workers; without it, no roll-back.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="File with callers' keys, one per line; without it, anybody may send requests.",
    )
    admin_keys_file: Path | None = Field(
        default=None,
        description="File with admin keys, one per line; without it, no admin routes and no forcing by key.",
    )
    trusted_keys_file: Path | None = Field(
        default=None,
        description="PEM file of Ed25519 public keys; with it, only versions that one of them has signed may serve.",
    )
    model: str | None = Field(
        default=None, description="Name of the one model to serve; without it every model in the folder is served."
    )
    version: int | None = Field(
        default=None, ge=0, description="Version to hold on to; without it the highest good one is served."
    )
    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    metrics_host: str = Field(default="127.0.0.1", description="Address that /metrics listens on.")
    metrics_port: int = Field(default=9100, ge=0, le=65535, description="Port of /metrics; 0 takes a free one.")
    workers: int = Field(
        default=0, ge=0, le=256, description="Worker processes; 0: one per core that this process may use."
    )
    threads: int = Field(
        default=1, ge=1, le=64, description="Requests a worker computes at a time; each uses one thread."
    )
    inline_ms: float = Field(
        default=2.0,
        ge=0,
        le=1000,
        description="Requests expected to take less are computed on the event loop, which spares two changes of "
        "threads; 0 never, nor with several threads.",
    )
    max_in_flight: int = Field(
        default=64, ge=1, le=10_000, description="Most requests that a worker holds at a time; `queue_ms` allows fewer."
    )
    queue_ms: float = Field(
        default=100.0,
        gt=0,
        le=60_000,
        description="Longest that a request is meant to wait for a thread; sets how many are held, by measured time.",
    )
    retry_after_seconds: int = Field(default=1, ge=1, le=3600, description="What a 503 tells the caller to wait.")
    deadline_ms: int = Field(
        default=1000,
        ge=1,
        le=60_000,
        description="Deadline of a request without `X-Request-Deadline-Ms`, from its arrival.",
    )
    fallback: Literal["order", "none"] = Field(
        default="order",
        description="Whether a model that fails or overruns is answered with a fallback order or an error.",
    )
    fallback_feature: str | None = Field(
        default=None, description="Numeric item feature that the fallback order descends by; else the input order."
    )
    max_candidates: int = Field(default=2000, ge=1, le=100_000, description="Most candidates in a request.")
    max_body_bytes: int = Field(
        default=8 << 20, ge=1024, le=1 << 30, description="Largest request body, also after decompression."
    )
    drain_seconds: float = Field(
        default=3.0,
        ge=0,
        le=600,
        description="How long requests are still taken after SIGTERM, while /readyz says 503.",
    )
    stop_seconds: int = Field(
        default=10, ge=1, le=600, description="How long requests in flight may take after the drain window."
    )
    hang_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long one of several workers may stand still before it is killed and replaced; 0: for ever.",
    )
    stock_graphs: bool = Field(
        default=False,
        description="Run int8 models by ONNX Runtime's own operators even where ours are usable, for comparison.",
    )
    warmup_runs: int = Field(default=3, ge=1, le=1000, description="Inferences run before a version may serve.")
    reload_seconds: float = Field(
        default=0.25,
        ge=0,
        le=3600,
        description="How often the models folder and the fusion config are looked at; 0 never looks again.",
    )
    log_exposures: bool = Field(
        default=True, description="Whether a ranked request of a user in experiments writes a log line of them."
    )
    log_sample: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of good requests that have a log line, chosen by request id; failed and degraded ones have.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="How log lines are written; `auto` is text on a terminal, else JSON."
    )
    log_buffer_bytes: int = Field(
        default=4 << 20,
        ge=4096,
        le=1 << 30,
        description="Log lines that may wait to be written; more are dropped and counted.",
    )
    otel_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        description="Where traces go, OTLP over HTTP: http://collector:4318/v1/traces, say; without it, none are made.",
    )
    otel_sample: float = Field(
        default=0.01, ge=0, le=1, description="Share of requests that are traced, unless their caller has decided."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written."
    )


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> Settings:
    """Return the settings from a file, the environment and command-line flags; None in flags is not given.

    Raises:
        SettingsInvalid: names the source and the setting.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in _read_file(file).items():
        values[name], sources[name] = value, str(file)
    for name in Settings.model_fields:
        variable = ENV_PREFIX + name.upper()
        if variable in environment:
            values[name], sources[name] = environment[variable], f"environment {variable}"
    for name, value in flags.items():
        if value is not None:
            values[name], sources[name] = value, f"--{name.replace('_', '-')}"
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "missing":
            expected = f"--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()} or {name}: in a settings file"
            raise SettingsInvalid(f"setting {name!r}", found="nothing", expected=expected) from None
        if first["type"] == "extra_forbidden":
            expected = f"one of {', '.join(sorted(Settings.model_fields))}"
            raise SettingsInvalid(
                f"{sources[name]}: setting {name!r}", found="no such setting", expected=expected
            ) from None
        raise SettingsInvalid(
            f"{sources[name]}: setting {name!r}", found=repr(first["input"])[:80], expected=first["msg"]
        ) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the `DLEN_*` variables that are no setting, for a warning; `DLEN_TEST_*` belong to the tests."""
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(
        name
        for name in environment
        if name.startswith(ENV_PREFIX) and not name.startswith("DLEN_TEST_") and name not in known
    )


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        document = yaml.safe_load(file.read_bytes())
    except OSError as exc:
        raise SettingsInvalid(str(file), found=exc.strerror, expected="a readable YAML file") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsInvalid(str(file), found=" ".join(str(exc).split())[:200], expected="valid YAML") from exc
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SettingsInvalid(str(file), found=type(document).__name__, expected="a mapping of settings")
    return document
