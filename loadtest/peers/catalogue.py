"""The servers that are compared: how each is started, and how it is asked. Knows nothing of measuring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.errors import PeerUnknown
from loadtest.peers.kit import Kit
from loadtest.peers.wires import (
    Wire,
    json_lists,
    of_peer,
    of_service,
    of_whole_job,
    p_of_bytes,
    p_of_lists,
    p_of_v2,
    raw_bytes,
    uploaded,
    v2_binary,
    v2_json,
)

PEERS_FOLDER = Path(".peers")
SOURCES = Path(__file__).parent
HOST = "127.0.0.1"
INT8_TOLERANCE = 0.05


@dataclass(frozen=True)
class Start:
    """What a start needs to know: the kit, free ports on loopback, the peer's environment."""

    kit: Kit
    ports: tuple[int, ...]
    environment: Path

    def script(self, name: str) -> list[str]:
        """Return the command that runs a peer's serve.py."""
        return [str(self.environment / "bin" / "python"), str(SOURCES / name / "serve.py")]


@dataclass(frozen=True)
class Server:
    """One server.

    Attributes:
        name: as tables show it.
        command: its start → argv.
        wires: ways to ask it.
        graphs: what a bare loop runs, a peer without a server: torch's own export, and the service's graphs. What it
            cannot run here it leaves out.
        environment: further environment variables of a start.
        peer: name of its environment and folder; None for this service.
        models: models folder of the kit that this service needs.
        python: what its environment is made with.
    """

    name: str
    command: Callable[[Start], list[str]]
    wires: tuple[Wire, ...]
    environment: Callable[[Start], Mapping[str, str]] = field(default=lambda start: {})
    peer: str | None = None
    models: str | None = None
    python: str = sys.executable
    graphs: tuple[str, ...] = ()


def services() -> tuple[Server, ...]:
    """Return this service with the kit's bundles."""
    kinds = {"JSON rows": ("rows", "json"), "columnar JSON": ("columns", "json"), "Arrow": ("arrow", "arrow")}
    ids = {"ids only": ("ids", "json"), "ids only, Arrow back": ("ids", "arrow")}

    def service(name: str, models: str, wires: dict[str, tuple[str, str]], tolerance: float) -> Server:
        def command(start: Start) -> list[str]:
            options = ["--models", str(start.kit.models(models)), "--fusion", str(start.kit.folder / "fusion.yaml")]
            ports = ["--port", str(start.ports[0]), "--metrics-port", str(start.ports[1])]
            return [sys.executable, "-m", "cli", "serve", "--host", HOST, "--workers", "1", *options, *ports]

        made = (of_service(label, *forms, tolerance=tolerance) for label, forms in wires.items())
        return Server(name, command, tuple(made), models=models)

    return (
        service("dlen fp32", "fp32", kinds, 1e-4),
        service("dlen int8", "int8", kinds, INT8_TOLERANCE),
        service("dlen int8, packed items", "packed", ids, INT8_TOLERANCE),
        service("dlen int8, item cache", "items", ids, INT8_TOLERANCE),
    )


def _mlserver(start: Start) -> dict[str, str]:
    names = ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT")
    ports = {name: str(port) for name, port in zip(names, start.ports, strict=False)}
    # workers of its own would share the one core, and add a queue
    return ports | {"MLSERVER_HOST": HOST, "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false"}


def _bentoml(start: Start) -> list[str]:
    options = ["--host", HOST, "--port", str(start.ports[0]), "--working-dir", str(SOURCES / "bentoml")]
    return [str(start.environment / "bin" / "bentoml"), "serve", "serve:Ranker", *options]


PEERS: tuple[Server, ...] = (
    Server(
        "BentoML",
        _bentoml,
        (of_peer("JSON", "/predict", json_lists, p_of_lists),),
        lambda start: {"BENTOML_DO_NOT_TRACK": "True"},
        peer="bentoml",
    ),
    Server(
        "MLServer",
        lambda start: [str(start.environment / "bin" / "mlserver"), "start", str(SOURCES / "mlserver")],
        (
            of_peer("V2 JSON", "/v2/models/ranker/infer", v2_json, p_of_v2),
            of_peer("bytes, custom handler", "/bytes", raw_bytes, p_of_bytes),
            of_whole_job("JSON rows, whole job in a custom handler", "/rank"),
        ),
        _mlserver,
        peer="mlserver",
    ),
    Server(
        "LitServe",
        lambda start: start.script("litserve"),
        (
            of_peer("JSON", "/predict", json_lists, p_of_lists),
            of_peer("bytes, uploaded file", "/predict", uploaded, p_of_bytes),
        ),
        peer="litserve",
    ),
    Server(
        "Ray Serve",
        lambda start: start.script("ray"),
        (of_peer("JSON", "/", json_lists, p_of_lists), of_peer("bytes", "/", raw_bytes, p_of_bytes)),
        lambda start: {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
        peer="ray",
    ),
    Server(
        "Triton",
        lambda start: start.script("triton"),
        (
            of_peer("V2 JSON", "/v2/models/ranker/infer", v2_json, p_of_v2),
            of_peer("V2 binary", "/v2/models/ranker/infer", v2_binary, p_of_v2),
        ),
        peer="triton",
        python="/usr/bin/python3.11",
    ),
    Server(
        "ONNX Runtime, no server",
        lambda start: start.script("onnxruntime"),
        (),
        peer="onnxruntime",
        graphs=("plain", "fp32", "int8", "fused"),
    ),
    Server(
        "OpenVINO, no server",
        lambda start: start.script("openvino"),
        (),
        peer="openvino",
        graphs=("plain", "plain-bfloat16", "fp32", "int8"),
    ),
)


def chosen(names: str) -> tuple[Server, ...]:
    """Return the peers of `all`, `none` or a list with commas.

    Raises:
        PeerUnknown: another name.
    """
    if names in ("all", "none"):
        return PEERS if names == "all" else ()
    known = {peer.peer: peer for peer in PEERS}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            names = ", ".join(map(str, known))
            raise PeerUnknown("--peers", found=repr(name), expected=f"all, none or some of {names}")
    return tuple(known[name] for name in dict.fromkeys(wanted))
