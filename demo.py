"""`dlen demo`: the whole path on a simulated feed, step by step, each step a command anyone can type.

What a step made is reused by the next call. Knows the other parts only by their commands and over HTTP.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


class DemoFailed(Exception):
    """A step of the demo failed, or cannot begin."""

    exit_code = 2


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`."""
    demo = commands.add_parser(
        "demo",
        help="simulate, train, export, serve and rank in one go",
        description="Walk the whole path on a simulated feed and leave the service up until Ctrl-C.",
        epilog="example:\n  dlen demo --port 8080",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--folder", type=Path, default=Path(".run/demo"), help="where everything goes (.run/demo)")
    demo.add_argument("--impressions", type=int, default=300_000, help="rows to simulate (default 300000)")
    demo.add_argument("--epochs", type=int, default=3, help="passes over them (default 3)")
    demo.add_argument("--port", type=int, default=8080, help="port of the API (default 8080)")
    demo.add_argument("--metrics-port", type=int, default=9100, help="port of /metrics (default 9100)")
    demo.add_argument("--make-only", action="store_true", help="stop before the service: the bundle and the request")
    demo.add_argument("--once", action="store_true", help="stop the service after the request is answered")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a service must not be left behind
    for port in () if args.make_only else (args.port, args.metrics_port):
        _check_free(port)
    logs, prepared, run = folder / "logs", folder / "prepared", folder / "run"
    models, request = folder / "models", folder / "request.json"
    _say("1/6  a feed log with a known latent P(UP)")
    _step(logs, "simulate", "--out", logs, "--impressions", args.impressions, "--seed", 1)
    _say("2/6  features and labels as memory-mapped columns")
    _step(prepared, "prepare", "--source", "simulator", "--input", logs, "--out", prepared)
    _say("3/6  DLEN on MMOE, joint loss")
    training = ("--model", "dlen-mmoe", "--set", f"epochs={args.epochs}", "--out", run)
    _step(run / "result.json", "train", "--data", prepared, *training)
    _say("4/6  how good it is on the held-back last day")
    figures = ("--truth", logs, "--json", folder / "evaluation.json")
    _step(folder / "evaluation.json", "evaluate", "--run", run, "--data", prepared, *figures)
    _say("5/6  an ONNX bundle, and a rank request from held-back rows")
    _step(models / "demo" / "1", "export", "--run", run, "--out", models / "demo" / "1")
    _step(request, "request", "--data", prepared, "--split", "test", "--candidates", 20, "--out", request)
    if args.make_only:
        return 0
    _say("6/6  the service, and the request's ordered feed")
    url = f"http://127.0.0.1:{args.port}"
    with _service(models, args.port, args.metrics_port) as service:
        _wait_until_ready(service, url)
        _run("rank", "--url", url, "--request", request)
        if args.once:
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            _say(f"API       {url}/docs")
            _say(f"metrics   http://127.0.0.1:{args.metrics_port}/metrics")
            _say("Ctrl-C stops the service.")
            service.wait()
    return 0


def _check_free(port: int) -> None:
    """Check that nothing listens on a port: its answers would be taken for the demo's own."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise DemoFailed(
                f"port 127.0.0.1:{port}: got {exc.strerror}, want a free port (--port, --metrics-port)"
            ) from exc


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _step(made: Path, *arguments: object) -> None:
    """Run a `dlen` command unless what it makes is there."""
    if made.exists():
        _say(f"     {made} is there, reused")
        return
    _run(*arguments)


def _run(*arguments: object) -> None:
    command = [str(argument) for argument in arguments]
    _say(f"     $ dlen {shlex.join(command)}")
    if code := subprocess.run([sys.executable, "-m", "cli", *command], check=False).returncode:
        raise DemoFailed(f"dlen {command[0]} ended with exit code {code}")


@contextlib.contextmanager
def _service(models: Path, port: int, metrics_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the service; stop it gracefully when the block ends."""
    fusion = Path(__file__).parent / "configs" / "fusion.yaml"
    command = ["serve", "--models", str(models), "--fusion", str(fusion)]
    command += ["--port", str(port), "--metrics-port", str(metrics_port)]
    _say(f"     $ dlen {shlex.join(command)}")
    service = subprocess.Popen([sys.executable, "-m", "cli", *command])
    try:
        yield service
    finally:
        if service.poll() is None:
            service.send_signal(signal.SIGTERM)
            try:
                service.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


def _wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            raise DemoFailed(f"dlen serve ended with exit code {service.returncode}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return
        time.sleep(0.1)
    raise DemoFailed(f"{url}/readyz: not ready within {READY_WITHIN_S:g} s")
