"""What containers would run, run without one: the Dockerfile's and compose's own words."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cli import main

ROOT = Path(__file__).parents[2]


@dataclass
class Image:
    """The last stage of a Dockerfile."""

    copies: list[tuple[str, str]]
    environment: dict[str, str]
    command: list[str]
    health: list[str]
    exposed: set[str]
    user: str
    text: str


def read_dockerfile() -> Image:
    text = (ROOT / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", " ", text)
    stage = joined[joined.rindex("\nFROM ") :]
    lines = [line.split(None, 1) for line in stage.splitlines() if line.strip() and not line.startswith("#")]
    values: dict[str, list[str]] = {}
    for word, *rest in lines:
        values.setdefault(word, []).extend(rest)
    health = values["HEALTHCHECK"][0]
    return Image(
        copies=[tuple(c.split()) for c in values["COPY"] if not c.startswith("--")],  # type: ignore[misc]
        environment=dict(pair.split("=", 1) for pair in values["ENV"][0].split()),
        command=json.loads(values["ENTRYPOINT"][0]) + json.loads(values["CMD"][0]),
        health=json.loads(health[health.index("[") :]),
        exposed=set(" ".join(values["EXPOSE"]).split()),
        user=values["USER"][0],
        text=text,
    )


@pytest.fixture(scope="module")
def image() -> Image:
    return read_dockerfile()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.fixture
def started(tmp_path: Path, image: Image, models: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The image's command in a folder that holds only what it copies; only paths and ports are replaced."""
    app = tmp_path / "app"
    for source, target in image.copies:
        place = app / Path(target).relative_to("/app")
        found = ROOT / source
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(found, place) if found.is_dir() else shutil.copy(found, place)
    (tmp_path / "fusion").mkdir()
    shutil.copy(ROOT / "configs" / "fusion.yaml", tmp_path / "fusion" / "fusion.yaml")
    port, metrics_port = free_port(), free_port()
    ours = {"/models": str(models), "/fusion": str(tmp_path / "fusion"), "8080": str(port), "0.0.0.0": "127.0.0.1"}
    ours |= {"9100": str(metrics_port), "python": sys.executable}
    environment = {**image.environment, "PYTHONPATH": str(app), "PATH": os.environ["PATH"]}
    process = subprocess.Popen([ours.get(word, word) for word in image.command], cwd=app, env=environment)
    try:
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", environment
    finally:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def healthy(image: Image, url: str, environment: dict[str, str]) -> bool:
    words = [sys.executable if word == "python" else word for word in image.health]
    words = [word.replace("http://127.0.0.1:8080", url) for word in words]
    return subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0


def test_the_images_command_serves_from_its_own_files_and_its_health_check_sees_it(started, image, prepared, tmp_path):
    url, metrics_url, environment = started
    assert not healthy(image, "http://127.0.0.1:9", environment)
    give_up = time.monotonic() + 40
    while not healthy(image, url, environment) and time.monotonic() < give_up:
        pass
    request = tmp_path / "request.json"
    assert main(["request", "--data", str(prepared), "--split", "test", "--out", str(request)]) == 0
    document = json.loads(request.read_text())
    answer = httpx.post(f"{url}/v1/rank", json=document)
    assert (answer.status_code, len(answer.json()["items"])) == (200, len(document["candidates"]))
    assert 'route="/v1/rank"' in httpx.get(f"{metrics_url}/metrics").text


def test_the_image_holds_no_torch_and_only_hashed_packages(image):
    lock = (ROOT / "requirements" / "service.lock").read_text()
    packages = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==", lock, re.M)
    assert "torch" not in packages and "onnxruntime" in packages and "fastapi" in packages
    for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.M)[1:]:
        assert "--hash=sha256:" in entry, entry[:60]
    assert "--require-hashes" in image.text


def test_the_image_compiles_what_is_compiled(image, tmp_path, json_loops):
    stage = image.text.partition(" AS compiled\n")[2].partition("\nFROM ")[0]
    for source, target in re.findall(r"^COPY (\S+) /build/(\S+)$", stage, re.M):
        found, place = ROOT / source, tmp_path / target
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(found, place, ignore=ignored) if found.is_dir() else shutil.copy(found, place)
    (command,) = re.findall(r"^RUN (python setup\.py .+)$", stage, re.M)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CFLAGS": "-O0"}
    subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True, capture_output=True)
    patterns = re.findall(r"^COPY --from=compiled /build/(\S+) ", image.text, re.M)
    built = sorted(file.parent.relative_to(tmp_path) for pattern in patterns for file in tmp_path.glob(pattern))
    assert built == [
        Path("bundle"),
        Path("bundle/operators"),
        Path("fusion"),
        Path("service/wire"),
        Path("service/wire"),
    ]
    assert (
        re.findall(r"^cython==(\S+)", (ROOT / "requirements/build.lock").read_text(), re.M)
        == re.findall(r"cython==([\d.]+)", (ROOT / "pyproject.toml").read_text())[:1]
    )


def test_what_cannot_be_compiled_is_left_out(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    for package in ("bundle", "bundle/operators", "fusion", "service/wire", "training"):
        (tmp_path / package).mkdir(parents=True)
        for source in (ROOT / package).glob("*.[pch]*"):
            if source.suffix in (".pyx", ".c", ".h"):
                shutil.copy(source, tmp_path / package)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CC": "false"}, capture_output=True, text=True)
    assert done.returncode == 0 and not list(tmp_path.glob("**/*.so"))
    assert "bundle.compiled" in done.stderr and "bundle.operators.native" in done.stderr


def test_every_image_from_elsewhere_is_named_by_digest(compose, image):
    pinned = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", image.text, re.M)
    assert set(re.findall(r"^FROM (\S+)", image.text, re.M)) == {"${PYTHON_IMAGE}"}
    taken = {name: service["image"] for name, service in compose["services"].items() if "build" not in service}
    assert set(taken) == {"nginx", "prometheus", "grafana"}
    for name in (base, *taken.values()):
        assert pinned.fullmatch(name), name


def test_the_image_copies_only_what_serves_and_runs_as_nobody_in_particular(image):
    assert {source for source, _ in image.copies} == {"cli.py", "bundle", "fusion", "service"}
    assert image.user not in ("root", "0")
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = {"requirements/service.lock", "requirements/build.lock", "setup.py"}
    needed |= {source for source, _ in image.copies}
    assert {word[1:] for word in ignored if word.startswith("!")} == needed


def test_compose_mounts_what_the_images_command_reads(compose, image):
    ranker = compose["services"]["ranker-1"]
    assert ranker == compose["services"]["ranker-2"]
    mounts = {volume.split(":")[1] for volume in ranker["volumes"]}
    for flag in ("--models", "--fusion"):
        path = Path(image.command[image.command.index(flag) + 1])
        assert any(Path(mount) == path or path in Path(mount).parents for mount in mounts)
    for volume in ranker["volumes"]:
        source, _, mode = volume.split(":")
        assert mode == "ro"
        assert source == "./models" or (ROOT / source).exists()
    assert ranker["read_only"] and ranker["cap_drop"] == ["ALL"]


def test_compose_settings_are_settings(compose):
    from service.settings import load_settings, unknown_variables

    environment = compose["services"]["ranker-1"]["environment"]
    assert unknown_variables(environment) == []
    load_settings({"models": "m", "fusion": "f"}, environment)


def test_prometheus_scrapes_the_services_of_compose_on_their_exposed_ports(compose, image):
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    mounted = [v for v in compose["services"]["prometheus"]["volumes"] if v.startswith("./")]
    flag = next(c for c in compose["services"]["prometheus"]["command"] if c.startswith("--config.file="))
    for volume in mounted:
        source, target, _ = volume.split(":")
        assert (ROOT / source / Path(flag.partition("=")[2]).relative_to(target)).is_file()
    targets = [t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    ports = dict(target.split(":") for target in targets)
    rankers = {name for name in compose["services"] if name.startswith("ranker-")}
    assert set(ports) - {"localhost"} == rankers
    assert {ports[name] for name in rankers} <= image.exposed


def test_every_file_that_compose_mounts_is_there_and_every_container_is_confined(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source == "./models" or (ROOT / source).exists(), volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port


def test_the_proxy_of_compose_knows_its_rankers_and_waits_longer_than_they_do(compose):
    config = (ROOT / "deploy/nginx/nginx.conf").read_text()
    rankers = {name for name in compose["services"] if name.startswith("ranker-")}
    assert set(re.findall(r"server (ranker-\d+):8080", config)) == rankers
    assert rankers == set(compose["services"]["nginx"]["depends_on"])
    waits_ms = int(re.findall(r"proxy_read_timeout (\d+)ms", config)[0])
    assert waits_ms > int(compose["services"]["ranker-1"]["environment"]["DLEN_DEADLINE_MS"])


def test_grafana_finds_its_source_and_its_dashboards(compose):
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]
    (provider,) = yaml.safe_load((folder / "dashboards/dlen.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[1::-1] for volume in compose["services"]["grafana"]["volumes"])
    assert sorted(file.suffix for file in (ROOT / mounted[provider["options"]["path"]]).iterdir()) == [".json"] * 3
    assert ROOT / mounted["/etc/grafana/provisioning"] == folder
